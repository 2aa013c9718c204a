//! Extended attributes, for which busybox has no command.

use std::path::Path;

use anyhow::{Context, Result};

/// Prints the attribute's bytes in hexadecimal.
pub fn show(path: &Path, name: &str) -> Result<()> {
    let mut bytes = [0; 4096];
    let count = rustix::fs::getxattr(path, name, &mut bytes)
        .with_context(|| format!("reading {name} of {}", path.display()))?;
    let hex: String = bytes[..count].iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{hex}");
    Ok(())
}

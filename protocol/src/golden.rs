//! Frozen bytes: what a release has spoken, the next one speaks.

use std::path::Path;

/// Compares bytes with those of `tests/golden/NAME.bin`, which exist from the release on that first had them.
pub(crate) fn check(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.bin"));
    if !path.exists() && std::env::var_os("RINGFORT_NEW_GOLDEN").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(bytes, golden, "{name}");
}

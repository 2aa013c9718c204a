//! Asking before what cannot be taken back.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, Result, bail};

/// Goes on where `given` says so or the person at the terminal does; refuses otherwise.
pub fn confirm(question: &str, given: bool) -> Result<()> {
    if given {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("{question} Nobody is here to ask: give --yes to go on");
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush().context("ask")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("read the answer")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing was changed"),
    }
}

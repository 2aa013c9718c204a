//! What a server says that it has done, beside what it was asked to do: no figure means anything where the two differ.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub fn require_equal(what: &str, counted: u64, claimed: u64) -> Result<()> {
    ensure!(counted == claimed, "{what}: the server counts {counted}, {claimed} are claimed");
    Ok(())
}

/// Commands of a server's only channel, by name.
pub struct Commands(BTreeMap<String, u64>);

impl Commands {
    /// Out of `volume status`.
    pub fn of(status: &Value) -> Result<Self> {
        let operations = status["served"]["channels"][0]["operations"].as_array();
        let counts = operations.context("volume status counts no commands of the channel")?.iter();
        let counts = counts.map(|one| Some((one["name"].as_str()?.to_owned(), one["count"].as_u64()?)));
        Ok(Self(counts.collect::<Option<_>>().context("volume status counts commands otherwise")?))
    }

    /// Every claimed command was carried out by the server since, and nothing else was.
    pub fn require(&self, before: &Self, claimed: &Value) -> Result<()> {
        let claimed = claimed.as_object().context("no commands are claimed")?;
        for name in claimed.keys().chain(self.0.keys()) {
            let count = |counts: &Self| counts.0.get(name).copied().unwrap_or(0);
            let claimed = claimed.get(name).and_then(Value::as_u64).unwrap_or(0);
            require_equal(name, count(self) - count(before), claimed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test that cannot go on fails

    use serde_json::json;

    use super::*;

    fn commands(operations: &Value) -> Commands {
        Commands::of(&json!({ "served": { "channels": [{ "operations": operations }] } })).unwrap()
    }

    #[test]
    fn a_command_that_was_not_claimed_and_one_that_was_not_counted_are_found() {
        let before = commands(&json!([{ "name": "open", "count": 2 }]));
        let after = commands(&json!([{ "name": "open", "count": 2 }, { "name": "write", "count": 5 }]));
        assert!(after.require(&before, &json!({ "write": 5 })).is_ok());
        let wrong = [json!({}), json!({ "write": 4 }), json!({ "write": 5, "sync": 1 })];
        for claimed in wrong {
            assert!(after.require(&before, &claimed).is_err(), "{claimed}");
        }
        assert!(Commands::of(&json!({})).is_err());
    }
}

//! A SQLite database whose writer says what it has committed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringfort_qemu_tests::agent::Task;
use ringfort_qemu_tests::machine::Guest;
use ringfort_qemu_tests::scene::MOUNTED;

use crate::{TIMEOUT, must};

/// Rows of one transaction.
const ROWS: u64 = 20;

/// What a row of step `step` with number `number` must hold.
const BODY: &str =
    "printf('%08x', step * 7919 + number * 104729) || hex(zeroblob(20 + (step * 31 + number) % 300))";

/// A database in the volume.
pub struct Database {
    pub name: &'static str,
    /// SQLite's `journal_mode`.
    pub journal: &'static str,
}

/// A writer under way.
pub struct Writer<'guest> {
    task: Task<'guest>,
}

impl Database {
    /// Starts a writer of one transaction after another, each synced: [`ROWS`] rows are added to an indexed table, and
    /// pages in the middle of another are overwritten. Only after a transaction's end is it said to be committed.
    pub fn start_writing<'guest>(&self, guest: &'guest Guest) -> Result<Writer<'guest>> {
        let Database { name, journal } = self;
        // A file opened and closed for one answer: what goes to the standard output itself would wait in its buffer. SQLite's
        // own commands must begin their line.
        let script = format!(
            "cd {MOUNTED}; mkfifo /tmp/{name}
              {{ echo '
                PRAGMA journal_mode={journal}; PRAGMA synchronous=FULL; PRAGMA cache_size=20;
                CREATE TABLE ledger(step INTEGER, number INTEGER, body TEXT);
                CREATE INDEX bodies ON ledger(body);
                CREATE TABLE churn(id INTEGER PRIMARY KEY, body BLOB);
                INSERT INTO churn SELECT value, zeroblob(700) FROM generate_series(1, 400);'
              step=0
              while true; do echo \"
                BEGIN;
                INSERT INTO ledger SELECT step, number, {BODY}
                    FROM (SELECT $step AS step, value AS number FROM generate_series(1, {ROWS}));
                UPDATE churn SET body = randomblob(700) WHERE id % 40 = $step % 40;
                COMMIT;
.once /proc/self/fd/1
                SELECT 'committed $step';\"
                step=$((step + 1))
              done; }} > /tmp/{name} &
              exec sqlite3 -bail {name}.database < /tmp/{name}"
        );
        Ok(Writer { task: guest.start(&["/bin/sh", "-c", &script])? })
    }

    /// The database is whole, and the first `commits` transactions are in it with every row as written; at most the one
    /// that was under way beside them, in full.
    pub fn verify(&self, guest: &Guest, commits: u64) -> Result<()> {
        let question = format!(
            "PRAGMA integrity_check; SELECT count(*) FROM ledger;
             SELECT count(*) FROM (SELECT step FROM ledger GROUP BY step
                HAVING count(*) = {ROWS} AND sum(body = {BODY}) = {ROWS} AND count(DISTINCT number) = {ROWS});
             SELECT max(step) + 1 FROM ledger; SELECT count(*) FROM churn WHERE length(body) = 700;"
        );
        let answer =
            must(guest, &format!("cd {MOUNTED} && sqlite3 -bail {}.database \"{question}\"", self.name))?;
        let lines: Vec<&str> = answer.lines().collect();
        ensure!(lines.first() == Some(&"ok"), "{}: {answer}", self.name);
        let numbers = lines[1..].iter().map(|line| line.parse()).collect::<Result<Vec<u64>, _>>();
        let numbers = numbers.with_context(|| format!("{}: {answer}", self.name))?;
        let [rows, whole_steps, steps, churn] = numbers[..] else { anyhow::bail!("{}: {answer}", self.name) };
        ensure!(churn == 400, "{}: {churn} rows of churn", self.name);
        ensure!(rows == steps * ROWS && whole_steps == steps, "{}: {answer}", self.name);
        ensure!(
            (commits..=commits + 1).contains(&steps),
            "{}: {steps} transactions are there, {commits} were acknowledged",
            self.name
        );
        Ok(())
    }
}

impl Writer<'_> {
    /// Transactions acknowledged so far.
    pub fn commits(&self) -> u64 {
        committed(&self.task.stdout())
    }

    pub fn wait_for_commits(&mut self, commits: u64) -> Result<()> {
        self.task.wait_until(|said| committed(said) >= commits, TIMEOUT)
    }

    /// How many transactions were acknowledged before the volume's server went away.
    pub fn cut_off(mut self) -> u64 {
        committed(&self.task.drain(Duration::from_secs(10)))
    }
}

/// Whole lines only: the last one may be cut.
fn committed(said: &str) -> u64 {
    said.split_inclusive('\n').filter(|line| line.starts_with("committed ") && line.ends_with('\n')).count()
        as u64
}

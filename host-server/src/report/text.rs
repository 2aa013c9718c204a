//! For people: the whole report, the picture of `--watch`, and its line.

use std::fmt::{Result, Write as _};

use super::{
    Channel, Cleaning, CleaningActivity, Component, ComponentState, Counters, Guest, HealthStatus, Rates,
    Space, Status, Tree,
};
use crate::size::ByteSize;

/// Kinds of requests in the picture: the most frequent ones.
const OPERATIONS_SHOWN: usize = 8;

impl Status {
    pub fn live_components(&self) -> usize {
        self.tree.components.iter().filter(|component| component.state == ComponentState::Live).count()
    }

    /// Everything.
    pub fn to_text(&self) -> String {
        written(|text| {
            self.write_head(text)?;
            self.tree.write(text)?;
            for component in &self.tree.components {
                component.write(text)?;
            }
            self.write_findings(text)?;
            self.write_space(text)?;
            self.write_cleaning(text)?;
            self.write_counters(text)
        })
    }

    /// One moment of the live view.
    pub fn to_picture(&self, rates: Option<&Rates>) -> String {
        written(|text| {
            self.write_head(text)?;
            self.write_space(text)?;
            self.write_cleaning(text)?;
            let Some(rates) = rates else {
                let why = if self.served.is_some() { "at the next look" } else { "of a served volume only" };
                writeln!(text, "rates     {why}")?;
                for component in &self.tree.components {
                    component.write(text)?;
                }
                return Ok(());
            };
            rates.write(text)?;
            for (component, rates) in self.tree.components.iter().zip(&rates.components) {
                let path = component.shown_path();
                writeln!(
                    text,
                    "  {:>2}  {:<7}  {:>7.0} reads/s {:>12}  {:>7.0} writes/s {:>12}  {:>6.0} flushes/s  {path}",
                    component.position,
                    component.shown_state(),
                    rates.reads_per_s,
                    per_second(rates.read_bytes_per_s),
                    rates.writes_per_s,
                    per_second(rates.write_bytes_per_s),
                    rates.flushes_per_s,
                )?;
            }
            Ok(())
        })
    }

    /// One moment of the live view in a line.
    pub fn to_line(&self, rates: Option<&Rates>) -> String {
        written(|text| {
            write!(text, "{}", self.health.name())?;
            match rates {
                Some(rates) => write!(
                    text,
                    "  {:.0} requests/s  {} read  {} written  {:.0} syncs/s",
                    rates.requests_per_s,
                    per_second(rates.read_bytes_per_s),
                    per_second(rates.written_bytes_per_s),
                    rates.syncs_per_s,
                )?,
                None if self.served.is_none() => write!(text, "  not served")?,
                None => write!(text, "  first look")?,
            }
            if let Some(log) = &self.log {
                write!(text, "  log {:.0} %", percent(log.used_bytes, log.size_bytes))?;
                write!(text, "  banks {}", ByteSize(log.bank_bytes))?;
            }
            if let Some(space) = &self.space {
                write!(text, "  used {:.1} %", percent(space.live_bytes, space.total_bytes))?;
            }
            write!(text, "  components {}/{}", self.live_components(), self.tree.components.len())
        })
    }

    fn write_head(&self, text: &mut String) -> Result {
        let health = match self.health {
            HealthStatus::Healthy => "healthy",
            HealthStatus::Degraded => "degraded: every byte is served, with less redundancy",
            HealthStatus::Failed => "failed: no changes are taken",
        };
        writeln!(text, "volume    {}", self.volume)?;
        writeln!(text, "health    {health}")?;
        if let Some(failure) = &self.failure {
            writeln!(text, "          {failure}")?;
        }
        match &self.served {
            Some(served) => writeln!(text, "served    by process {}, for {} s", served.pid, served.uptime_s)?,
            None => writeln!(text, "served    no")?,
        }
        for guest in self.served.iter().flat_map(|served| &served.guests) {
            guest.write(text)?;
        }
        for channel in self.served.iter().flat_map(|served| &served.channels) {
            channel.write(text)?;
        }
        Ok(())
    }

    fn write_findings(&self, text: &mut String) -> Result {
        for finding in &self.tree.findings {
            writeln!(text, "  found: {finding}")?;
        }
        Ok(())
    }

    fn write_space(&self, text: &mut String) -> Result {
        if let Some(space) = &self.space {
            space.write(text)?;
        }
        if let Some(log) = &self.log {
            let [size, used, bank] = [log.size_bytes, log.used_bytes, log.bank_bytes].map(ByteSize);
            writeln!(text, "log       {used} of {size}, epoch {}, {bank} in banks", log.epoch)?;
            let [size, used] = [log.metadata_log_size_bytes, log.metadata_log_used_bytes].map(ByteSize);
            writeln!(text, "          {used} of {size} in the metadata log")?;
        }
        if let Some(memory) = &self.memory {
            let [used, limit] = [memory.maps_bytes, memory.maps_limit_bytes].map(ByteSize);
            let (pages, free) = (memory.pages, memory.free_pages);
            writeln!(text, "maps      {used} of {limit}, {pages} pages in use, {free} free")?;
        }
        Ok(())
    }

    fn write_cleaning(&self, text: &mut String) -> Result {
        let Some(cleaning) = &self.cleaning else { return Ok(()) };
        cleaning.write(text)?;
        let user_bytes = self.counters.as_ref().map_or(0, |counters| counters.user_bytes);
        if user_bytes > 0 {
            let per_user_byte = cleaning.relocated_bytes as f64 / user_bytes as f64;
            writeln!(text, "          {per_user_byte:.2} bytes moved for each byte written by users")?;
        }
        Ok(())
    }

    fn write_counters(&self, text: &mut String) -> Result {
        self.counters.as_ref().map_or(Ok(()), |counters| counters.write(text))
    }
}

/// What `write` writes. Writing to a string cannot fail.
fn written(write: impl FnOnce(&mut String) -> Result) -> String {
    let mut text = String::new();
    let _ = write(&mut text);
    text
}

fn per_second(bytes: f64) -> String {
    format!("{}/s", ByteSize(bytes.round() as u64))
}

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}

impl Guest {
    fn write(&self, text: &mut String) -> Result {
        let Self { connections, sessions, errors, cache, queues, .. } = self;
        let [read, written] = [self.read_bytes, self.written_bytes].map(ByteSize);
        let socket = self.socket.display();
        let writeback = if self.writeback { ", writeback" } else { "" };
        writeln!(
            text,
            "  {socket}: cache {cache}{writeback}, {queues} queues, {connections} connections, {sessions} sessions, \
             {read} read, {written} written, {errors} errors",
        )
    }
}

impl Channel {
    fn write(&self, text: &mut String) -> Result {
        let Self { address, open_connections, rings, errors, .. } = self;
        let [read, written] = [self.read_bytes, self.written_bytes].map(ByteSize);
        let (commands, bad) = (self.command_count(), self.bad_input_count());
        writeln!(
            text,
            "  channel {address}: {open_connections} connections, {rings} rings, {commands} commands, {read} read, \
             {written} written, {errors} errors, of these {bad} for bad input",
        )
    }
}

impl Tree {
    fn write(&self, text: &mut String) -> Result {
        let Self { data_columns, parity_columns, metadata_mirrors, sequence, .. } = self;
        let metadata = ByteSize(self.metadata_bytes);
        writeln!(
            text,
            "tree      data {data_columns}+{parity_columns}, metadata mirrored {metadata_mirrors} ways, {metadata} a \
             mirror, labels at {sequence}",
        )
    }
}

impl Component {
    fn write(&self, text: &mut String) -> Result {
        let (state, path) = (self.shown_state(), self.shown_path());
        let size = ByteSize(self.size_bytes).to_string();
        write!(text, "  {:>2}  {state:<7}  {:<13}  {size:>9}  {path}", self.position, self.holds)?;
        match &self.failure {
            Some(failure) => writeln!(text, "  ({failure})")?,
            None => writeln!(text)?,
        }
        if self.errors > 0 {
            let Self { read_errors, write_errors, flush_errors, timeouts, .. } = self;
            writeln!(
                text,
                "      failed: {read_errors} reads, {write_errors} writes, {flush_errors} flushes; of these {timeouts} timed out"
            )?;
        }
        Ok(())
    }

    fn shown_state(&self) -> &'static str {
        match self.state {
            ComponentState::Live => "live",
            ComponentState::Failed => "FAILED",
            ComponentState::Missing => "MISSING",
        }
    }

    fn shown_path(&self) -> String {
        self.path.as_ref().map_or("-".to_owned(), |path| path.display().to_string())
    }
}

impl Space {
    fn write(&self, text: &mut String) -> Result {
        let [total, free, live, dead] =
            [self.total_bytes, self.free_bytes, self.live_bytes, self.dead_bytes].map(ByteSize);
        writeln!(text, "space     {total}: {live} live, {dead} dead, {free} not handed out")?;
        let Self { segments, free_segments, open_segments, closed_segments, .. } = self;
        writeln!(
            text,
            "segments  {segments}: {free_segments} free, {open_segments} open, {closed_segments} closed"
        )
    }
}

impl Cleaning {
    fn write(&self, text: &mut String) -> Result {
        let doing = match self.activity {
            CleaningActivity::Resting => "resting: enough segments are free",
            CleaningActivity::Tidying => "tidying while nobody writes",
            CleaningActivity::Ahead => "at work: few segments are free",
            CleaningActivity::Urgent => "URGENT: writers wait, or soon would",
            CleaningActivity::Exhausted => "exhausted: nothing more to be gained",
        };
        let Self { start_below_segments, cleaned_segments, unreadable_segments, .. } = self;
        let moved = ByteSize(self.relocated_bytes);
        writeln!(
            text,
            "cleaning  {doing}; begins below {start_below_segments} free; {cleaned_segments} cleaned, {moved} moved"
        )?;
        if *unreadable_segments > 0 {
            writeln!(text, "          {unreadable_segments} left UNREADABLE: see the server's log")?;
        }
        Ok(())
    }
}

impl Counters {
    fn write(&self, text: &mut String) -> Result {
        let [user, log, metadata_log, stripes, pages] =
            [self.user_bytes, self.log_bytes, self.metadata_log_bytes, self.stripe_bytes, self.page_bytes]
                .map(ByteSize);
        writeln!(
            text,
            "written   {user} by users; to devices: log {log}, metadata log {metadata_log}, stripes {stripes}, maps {pages}"
        )?;
        let Self { transactions, syncs, commits, checkpoints, .. } = self;
        writeln!(
            text,
            "counters  {transactions} transactions, {syncs} syncs, {commits} commits, {checkpoints} checkpoints"
        )
    }
}

impl Rates {
    fn write(&self, text: &mut String) -> Result {
        let [read, written] = [self.read_bytes_per_s, self.written_bytes_per_s].map(per_second);
        writeln!(
            text,
            "guests    {:.0} requests/s, {read} read, {written} written, {:.0} syncs/s, {:.0} commits/s",
            self.requests_per_s, self.syncs_per_s, self.commits_per_s
        )?;
        let [log, metadata_log, stripes, pages] = [
            self.log_bytes_per_s,
            self.metadata_log_bytes_per_s,
            self.stripe_bytes_per_s,
            self.page_bytes_per_s,
        ]
        .map(per_second);
        writeln!(text, "devices   log {log}, metadata log {metadata_log}, stripes {stripes}, maps {pages}")?;
        for operation in self.operations.iter().take(OPERATIONS_SHOWN) {
            let (name, per_s, mean_us) = (&operation.name, operation.per_s, operation.mean_us);
            writeln!(text, "  {name:<16} {per_s:>9.0} /s  {mean_us:>9.0} µs on average")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::example::served;
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_whole_report_names_each_channel_with_what_came_over_it() {
        let text = served().to_text();
        let line = text.lines().find(|line| line.contains("channel unix:/run/data.ctl")).unwrap();
        for part in ["1 connections", "2 rings", "9 commands", "4 KiB read", "3 errors, of these 2"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn both_views_say_what_the_cleaner_does_and_what_it_costs() {
        let status = served();
        for text in [status.to_text(), status.to_picture(None)] {
            for part in ["at work", "below 7 free", "3 cleaned", "0.50 bytes moved", "1 left UNREADABLE"] {
                assert!(text.contains(part), "{part} is not in {text}");
            }
        }
    }

    #[test]
    fn the_live_view_says_what_goes_on_and_what_is_wrong() {
        let earlier = served();
        let mut later = earlier.clone();
        let guest = &mut later.served.as_mut().unwrap().guests[0];
        *guest.requests.get_mut("write").unwrap() += 3000;
        guest.operations[0].count += 3000;
        guest.operations[0].duration_ns += 3000 * 80_000;
        let rates = Rates::between(&earlier, &later, Duration::from_secs(1)).unwrap();
        let picture = later.to_picture(Some(&rates));
        for part in ["degraded", "FAILED", "3000 requests/s", "write", "80 µs", "log", "flushes/s"] {
            assert!(picture.contains(part), "{part} is not in {picture}");
        }
        let line = later.to_line(Some(&rates));
        for part in ["degraded", "3000 requests/s", "log 25 %", "used 25.0 %", "components 1/2"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains('\n'));
        assert!(later.to_line(None).contains("first look"));
    }
}

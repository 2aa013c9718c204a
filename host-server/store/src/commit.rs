//! Group commit: what has been applied becomes durable, together, as one log record.
//!
//! Order within a commit: stripes that are cheaper to write than to log → flush of the data components → the record, written
//! durably to the mirrors. A record never names what is not durable.

use std::rc::Rc;

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};
use ringfort_engine::sync::{join_all, race};

use crate::address::PhysicalBlock;
use crate::core::Core;
use crate::error::{ErrorKind, StoreError};
use crate::format::log::{Entry, KIND_COMMIT};
use crate::format::segment::StripeSummary;
use crate::limits::{CHECKPOINT_AT_QUARTERS, PENDING_BLOCKS_MAX, PENDING_LOG_PART};
use crate::log::ring::{RecordContent, body_blocks};
use crate::segment::bank::{FullStripe, StripeState};
use crate::state::{BankId, RetainedBody, State};

impl State {
    /// Whether so much waits that a commit should start by itself.
    pub fn pending_is_large(&self) -> bool {
        let log_part = self.ring.block_count() / PENDING_LOG_PART;
        let body_blocks = (self.frames_body_bytes / BLOCK_BYTES) as u64;
        self.frames_data_blocks >= PENDING_BLOCKS_MAX.min(log_part / 2) || body_blocks >= log_part / 2
    }

    /// Keeps the body of the record that goes to the log's head now.
    fn retain_body(&mut self, content: &RecordContent) {
        self.retained_bytes += content.body.len() as u64;
        self.retained.push_back(RetainedBody {
            position: self.ring.head().position,
            first_transaction: content.first_transaction,
            transaction_count: content.transaction_count,
            body: content.body.clone(),
        });
    }

    /// Takes every applied transaction as the content of one record; `None` where there is none.
    fn take_record(&mut self) -> Option<(RecordContent, u64)> {
        if self.frames.is_empty() {
            return None;
        }
        let frames = std::mem::take(&mut self.frames);
        let transaction_count = frames.len() as u64;
        let first_transaction = self.next_transaction - transaction_count;
        let position = self.ring.head().position;
        let mut body = Vec::with_capacity(self.frames_body_bytes);
        let mut data: Vec<Slice> = Vec::with_capacity(self.frames_data_blocks as usize);
        for frame in frames {
            body.extend_from_slice(&frame.body);
            for (start, count) in frame.bank_runs {
                for index in 0..count as u64 {
                    let physical = PhysicalBlock(start.0 + index);
                    let Some(bank) = self.bank_of(physical) else {
                        unreachable!("banks outlive their frames")
                    };
                    // A written stripe was named after this block was applied, so its summary is in this record.
                    if bank.stripe_state(physical) == Some(StripeState::Written) {
                        continue;
                    }
                    let Some(slot) = bank.resident(physical) else {
                        unreachable!("unwritten blocks are resident")
                    };
                    data.push(slot.data.clone());
                    bank.note_logged(physical, position);
                }
            }
        }
        if let Some(keep) = &mut self.keep {
            keep.switch();
        }
        self.frames_body_bytes = 0;
        self.frames_data_blocks = 0;
        let content = RecordContent {
            body,
            data,
            first_transaction,
            transaction_count: transaction_count as u32,
            kind: KIND_COMMIT,
            root_sequence: self.root.sequence,
        };
        Some((content, self.next_transaction - 1))
    }
}

impl Core {
    /// Writes full stripes of a bank, names them in a transaction and gives their memory back.
    pub async fn write_bank_stripes(&self, bank_id: BankId, full: Vec<FullStripe>) -> Result<(), StoreError> {
        let mut full = full.into_iter().peekable();
        while let Some(first) = full.next() {
            let mut run = vec![first];
            while let Some(next) = full.next_if(|next| next.stripe.0 == run[0].stripe.0 + run.len() as u32) {
                run.push(next);
            }
            self.write_bank_run(bank_id, run).await?;
        }
        Ok(())
    }

    async fn write_bank_run(&self, bank_id: BankId, run: Vec<FullStripe>) -> Result<(), StoreError> {
        let segment = self.state().banks[&bank_id].range.segment;
        let first = run[0].stripe;
        let data: Vec<Slice> = run.iter().flat_map(|stripe| stripe.data.iter().cloned()).collect();
        let parity = self.object.write_stripes(segment, first, data).await?;
        let mut state = self.state_mut();
        self.count_stripes(&mut state, run.len() as u64);
        state.counters.bank_stripes += run.len() as u64;
        let mut entries = Vec::with_capacity(run.len());
        let parity_blocks = parity.len() / run.len();
        for (index, stripe) in run.iter().enumerate() {
            let parity_checksums = parity[index * parity_blocks..(index + 1) * parity_blocks].to_vec();
            state.counters.padding_bytes += (stripe.padding_blocks * BLOCK_BYTES) as u64;
            let summary = StripeSummary {
                middles: stripe.middles.clone(),
                data_checksums: stripe.checksums.clone(),
                parity_checksums,
            };
            entries.push(Entry::Stripe { segment, stripe: stripe.stripe.0, summary: summary.encode() });
        }
        let transaction = state.apply_internal(&entries);
        if let Some(bank) = state.banks.get_mut(&bank_id) {
            run.iter().for_each(|stripe| bank.note_written(stripe.stripe));
            bank.written_by = Some(transaction);
        }
        drop(state);
        self.progress.notify_all();
        Ok(())
    }

    pub fn count_stripes(&self, state: &mut State, stripes: u64) {
        let geometry = state.geometry;
        state.counters.stripe_bytes +=
            stripes * u64::from(geometry.column_count()) * u64::from(geometry.unit_bytes);
    }

    /// Seals a bank and writes what is left of it, padded where it is short.
    pub async fn flush_bank(&self, bank_id: BankId) -> Result<(), StoreError> {
        let full = self.state_mut().banks.get_mut(&bank_id).map(|bank| bank.take_rest()).unwrap_or_default();
        let result = self.write_bank_stripes(bank_id, full).await;
        if let Err(error) = &result {
            self.fail(error.clone());
        }
        result
    }

    /// Starts writing every bank that takes no more blocks.
    pub fn spawn_bank_flushes(self: &Rc<Self>) {
        let waiting: Vec<BankId> = self
            .state()
            .banks
            .iter()
            .filter(|(_, bank)| bank.sealed && bank.is_gathering())
            .map(|(bank_id, _)| *bank_id)
            .collect();
        for bank_id in waiting {
            let core = Rc::clone(self);
            // Taken here, so that the next call does not see the bank as waiting for a task.
            let full =
                self.state_mut().banks.get_mut(&bank_id).map(|bank| bank.take_rest()).unwrap_or_default();
            self.tasks.spawn(async move {
                if let Err(error) = core.write_bank_stripes(bank_id, full).await {
                    core.fail(error);
                }
                core.commit_wanted.notify_one();
            });
        }
    }

    /// Makes everything applied so far durable, as one record.
    pub async fn commit(&self) -> Result<(), StoreError> {
        let _turn = self.commit_turn.lock().await;
        self.state().check_alive()?;
        let result = self.commit_in_turn().await;
        if let Err(error) = &result {
            self.fail(error.clone());
        }
        result
    }

    async fn commit_in_turn(&self) -> Result<(), StoreError> {
        let cheaper: Vec<(BankId, Vec<FullStripe>)> = self
            .state_mut()
            .banks
            .iter_mut()
            .map(|(bank_id, bank)| (*bank_id, bank.take_unlogged_full()))
            .filter(|(_, full)| !full.is_empty())
            .collect();
        let writes = cheaper.into_iter().map(|(bank_id, full)| self.write_bank_stripes(bank_id, full));
        for result in join_all(writes).await {
            result?;
        }
        self.shrink_record().await?;
        let (record, last_transaction) = {
            let mut state = self.state_mut();
            let Some((content, last_transaction)) = state.take_record() else { return Ok(()) };
            state.retain_body(&content);
            let free_blocks = state.ring.free_blocks();
            let Some(record) = state.ring.append(self.volume, content) else {
                let found = format!("{free_blocks} free blocks, too few for the record");
                return Err(StoreError::new(ErrorKind::NoSpace, "commit to", "log", found));
            };
            let mirrors = self.object.live_mirrors().len() as u64;
            state.counters.log_bytes += record.block_count * BLOCK_BYTES as u64 * mirrors;
            state.counters.commits += 1;
            (record, last_transaction)
        };
        self.object.flush_data().await?;
        for result in join_all(
            record
                .writes
                .into_iter()
                .map(|(address, data)| self.object.write_metadata_durably(address, data)),
        )
        .await
        {
            result?;
        }
        let mut state = self.state_mut();
        state.durable_transaction = last_transaction;
        state.retire_banks();
        self.pace.note_free(state.segments.free_count());
        let used_blocks = state.ring.used_blocks();
        let retained_limit = state.moved_ring.block_count() * BLOCK_BYTES as u64 / 2;
        if used_blocks * 4 >= state.ring.block_count() * CHECKPOINT_AT_QUARTERS
            || state.retained_bytes > retained_limit
        {
            self.checkpoint_wanted.notify_one();
        }
        drop(state);
        self.progress.notify_all();
        Ok(())
    }

    /// Where the record would not fit into the log with its data, the data goes to stripes first.
    async fn shrink_record(&self) -> Result<(), StoreError> {
        let fits = {
            let state = self.state();
            // Most records are small: counting their data exactly is for the others.
            let at_most = body_blocks(state.frames_body_bytes) + state.frames_data_blocks;
            at_most <= state.ring.free_blocks() || state.record_blocks() <= state.ring.free_blocks()
        };
        if fits {
            return Ok(());
        }
        let banks: Vec<BankId> = self.state().banks.keys().copied().collect();
        self.write_banks(&banks).await
    }

    /// Writes banks, padded where they are short, and waits until all their stripes are named, whoever writes them.
    pub async fn write_banks(&self, banks: &[BankId]) -> Result<(), StoreError> {
        for result in join_all(banks.iter().map(|bank_id| self.flush_bank(*bank_id))).await {
            result?;
        }
        loop {
            let progress = self.progress.notified();
            {
                let state = self.state();
                state.check_alive()?;
                let mut waiting = banks.iter().filter_map(|bank_id| state.banks.get(bank_id));
                if waiting.all(|bank| bank.is_done()) {
                    return Ok(());
                }
            }
            progress.await;
        }
    }

    /// Waits until `transaction` is durable.
    pub async fn wait_durable(&self, transaction: u64) -> Result<(), StoreError> {
        loop {
            {
                let state = self.state();
                if state.durable_transaction >= transaction {
                    return Ok(());
                }
                state.check_alive()?;
            }
            let progress = self.progress.notified();
            self.commit_wanted.notify_one();
            progress.await;
        }
    }

    /// Commits until `transaction` is durable, without waiting for the task that commits.
    pub async fn make_durable(&self, transaction: u64) -> Result<(), StoreError> {
        while self.state().durable_transaction < transaction {
            self.commit().await?;
        }
        Ok(())
    }

    /// The task that commits: when asked, and when the interval has passed.
    pub async fn run_commits(self: Rc<Self>) {
        while !self.closing.is_set() {
            self.commit_wanted.notified().await;
            // Tasks that are ready now join this commit instead of waiting for the next.
            self.engine.yield_now().await;
            if self.closing.is_set() || self.commit().await.is_err() {
                break;
            }
        }
    }

    /// Asks for a commit once in each interval in which something was applied.
    pub async fn run_interval(self: Rc<Self>) {
        while !self.closing.is_set() {
            race(self.engine.sleep(self.commit_interval), self.closing.wait()).await;
            self.ahead.age();
            self.pace.note_interval(self.state().counters.transactions);
            // Those who wait for room reconsider how long they have waited.
            self.progress.notify_all();
            if !self.state().frames.is_empty() {
                self.commit_wanted.notify_one();
            }
        }
    }
}

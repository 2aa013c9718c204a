//! How a transaction changes the state: entries are made of it once, and merged.

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};

use super::{BankId, Frame, Reservation, State, bank_stripes};
use crate::address::{LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock, StripeIndex};
use crate::error::{ErrorKind, StoreError};
use crate::format::checksum::block_checksum;
use crate::format::log::{Entry, WRITE_BLOCKS_MAX, WriteRun, encode_end};
use crate::map::{Message, tree};
use crate::segment::bank::{Bank, Slot};
use crate::segment::heat::Heat;
use crate::segment::table::Class;
use crate::volume::{Change, ShiftStep, StagedPiece, WrittenRun};

/// The entries that move mappings.
pub(crate) fn shift_entries(object: ObjectId, steps: Vec<ShiftStep>) -> impl Iterator<Item = Entry> {
    steps.into_iter().flat_map(move |step| -> Vec<Entry> {
        match step {
            ShiftStep::Unmap { start, len_blocks } => vec![Entry::Unmap { object, start, len_blocks }],
            ShiftStep::Share { start, len_blocks, middle } => (0..len_blocks)
                .step_by(WRITE_BLOCKS_MAX)
                .map(|offset| Entry::Share {
                    object,
                    start: LogicalBlock(start.0 + offset),
                    middle: MiddleAddress(middle.0 + offset),
                    len_blocks: (len_blocks - offset).min(WRITE_BLOCKS_MAX as u64),
                })
                .collect(),
        }
    })
}

impl State {
    /// Changes the maps as one logged entry says.
    pub fn merge_entry(&mut self, entry: &Entry) {
        let message = match entry {
            Entry::Put { tree, key, value } => Message::Put { tree: *tree, key: *key, value: value.clone() },
            Entry::Delete { tree, key } => Message::Delete { tree: *tree, key: *key },
            Entry::Unmap { object, start, len_blocks } => {
                Message::UnmapRun { object: *object, start: *start, len_blocks: *len_blocks }
            }
            Entry::Share { object, start, middle, len_blocks } => {
                Message::ShareRun { object: *object, start: *start, len_blocks: *len_blocks, middle: *middle }
            }
            Entry::Shift { .. } => unreachable!("whoever reads a shift takes its steps"),
            Entry::Write(run) => {
                let WriteRun { object, start, middle, physical, .. } = *run;
                let len_blocks = run.checksums.len() as u64;
                // Birth first: a later death always finds what it ends.
                self.maps.apply(Message::Birth { middle, physical, checksums: run.checksums.clone() });
                Message::MapRun { object, start, len_blocks, middle }
            }
            Entry::Move { middle, len_blocks, from, to } => {
                Message::Move { middle: *middle, len_blocks: *len_blocks, from: *from, to: *to }
            }
            Entry::Stripe { segment, stripe, summary } => Message::Put {
                tree: tree::SUMMARY,
                key: tree::summary_key(*segment, StripeIndex(*stripe)),
                value: summary.clone(),
            },
            Entry::View { view, entry } => {
                self.maps.put_view(*view, entry.clone());
                return;
            }
            Entry::Bank { .. } => return,
        };
        self.maps.apply(message);
    }

    /// Gives a list of entries its place in the order.
    fn append_frame(&mut self, entries: &[Entry], bank_runs: Vec<(PhysicalBlock, usize)>) -> u64 {
        let mut body = Vec::new();
        for entry in entries {
            entry.encode(&mut body);
            self.merge_entry(entry);
        }
        encode_end(&mut body);
        self.frames_body_bytes += body.len();
        self.frames_data_blocks += bank_runs.iter().map(|(_, count)| *count as u64).sum::<u64>();
        let transaction = self.next_transaction;
        self.next_transaction += 1;
        if let Some(keep) = &mut self.keep {
            keep.append(transaction, &body);
        }
        self.frames.push_back(Frame { body, bank_runs });
        transaction
    }

    /// Applies a transaction of the store's own.
    pub fn apply_internal(&mut self, entries: &[Entry]) -> u64 {
        self.append_frame(entries, Vec::new())
    }

    /// Applies a transaction. Fails only if the volume has failed.
    pub fn apply(
        &mut self,
        changes: Vec<Change>,
        mapped_blocks: Option<i64>,
        reservation: &mut Reservation,
    ) -> Result<u64, StoreError> {
        self.check_alive()?;
        self.check_room(&changes)?;
        let of_views = changes.iter().filter_map(Change::of_view);
        let mut view_entries = self.maps.views.entries_after(of_views)?;
        let user_bytes = self.counters.user_bytes;
        let mut entries = Vec::with_capacity(changes.len());
        let mut bank_runs = Vec::new();
        for change in changes {
            match change {
                Change::Put { tree, key, value } => entries.push(Entry::Put { tree, key, value }),
                Change::Delete { tree, key } => entries.push(Entry::Delete { tree, key }),
                Change::Unmap { object, start, len_blocks } => {
                    entries.push(Entry::Unmap { object, start, len_blocks });
                }
                Change::View { view, .. } => {
                    entries.push(Entry::View { view, entry: view_entries.pop_front() });
                }
                Change::Shift { object, steps, .. } => entries.extend(shift_entries(object, steps)),
                Change::Write { object, start, blocks } => {
                    let mut next = start;
                    for piece in blocks.pieces {
                        let len_blocks = match piece {
                            StagedPiece::Written(run) => self.write_stripes(&mut entries, object, next, run),
                            StagedPiece::Memory(slices) => self.write_bank(
                                &mut entries,
                                &mut bank_runs,
                                object,
                                next,
                                &slices,
                                reservation,
                            )?,
                        };
                        self.counters.user_bytes += len_blocks * BLOCK_BYTES as u64;
                        next = LogicalBlock(next.0 + len_blocks);
                    }
                }
            }
        }
        self.counters.transactions += 1;
        let written_blocks = (self.counters.user_bytes - user_bytes) / BLOCK_BYTES as u64;
        self.maps.note_mapped(mapped_blocks.unwrap_or(written_blocks as i64));
        Ok(self.append_frame(&entries, bank_runs))
    }

    /// Reservations keep this from failing; should one be wrong, the transaction is refused before it changes anything.
    fn check_room(&self, changes: &[Change]) -> Result<(), StoreError> {
        let pieces = changes.iter().filter_map(|change| match change {
            Change::Write { blocks, .. } => Some(&blocks.pieces),
            _ => None,
        });
        let bytes = pieces.flatten().map(|piece| match piece {
            StagedPiece::Memory(slices) => slices.iter().map(|slice| slice.len()).sum(),
            StagedPiece::Written(_) => 0,
        });
        let wanted = (bytes.sum::<usize>() / BLOCK_BYTES) as u64;
        if wanted <= self.free_blocks() {
            return Ok(());
        }
        let found = format!("{} free blocks for {wanted}", self.free_blocks());
        Err(StoreError::new(ErrorKind::NoSpace, "apply transaction to", "data region", found))
    }

    /// Entries for blocks that lie in stripes of their own already.
    fn write_stripes(
        &mut self,
        entries: &mut Vec<Entry>,
        object: ObjectId,
        start: LogicalBlock,
        run: WrittenRun,
    ) -> u64 {
        let mut done = 0;
        for checksums in run.checksums.chunks(WRITE_BLOCKS_MAX) {
            entries.push(Entry::Write(WriteRun {
                bank: false,
                object,
                start: LogicalBlock(start.0 + done),
                middle: MiddleAddress(run.middle.0 + done),
                physical: PhysicalBlock(run.physical.0 + done),
                checksums: checksums.to_vec(),
            }));
            done += checksums.len() as u64;
        }
        let first = self.geometry.locate(run.physical);
        for (index, summary) in run.summaries.into_iter().enumerate() {
            entries.push(Entry::Stripe {
                segment: first.segment,
                stripe: first.stripe.0 + index as u32,
                summary,
            });
        }
        done
    }

    /// Puts blocks into a bank and makes their entries.
    fn write_bank(
        &mut self,
        entries: &mut Vec<Entry>,
        bank_runs: &mut Vec<(PhysicalBlock, usize)>,
        object: ObjectId,
        start: LogicalBlock,
        slices: &[Slice],
        reservation: &mut Reservation,
    ) -> Result<u64, StoreError> {
        let blocks: Vec<Slice> = slices
            .iter()
            .flat_map(|slice| {
                (0..slice.len() / BLOCK_BYTES)
                    .map(|block| slice.slice(block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES))
            })
            .collect();
        let heat = self.recent.note(object, start, blocks.len() as u64);
        let mut done = 0;
        while done < blocks.len() {
            let bank_id = self.open_bank(heat, entries)?;
            let bank = &self.banks[&bank_id];
            let count = bank.free_slots().min(blocks.len() - done).min(WRITE_BLOCKS_MAX);
            let physical = bank.next_physical();
            let middle = self.take_middles(count as u64);
            let mut checksums = Vec::with_capacity(count);
            if let Some(bank) = self.banks.get_mut(&bank_id) {
                for (index, block) in blocks[done..done + count].iter().enumerate() {
                    let checksum = block_checksum(block);
                    checksums.push(checksum);
                    // A copy in any case: a block that waits in a bank must not hold a whole request's memory.
                    let data = match (&self.keep, bank.area) {
                        (Some(keep), Some(area)) => {
                            let mut slot = keep.block(area, bank.next_slot());
                            slot.copy_from_slice(block);
                            slot.freeze()
                        }
                        _ => Slice::copy_of(block),
                    };
                    let middle = MiddleAddress(middle.0 + index as u64);
                    bank.push(Slot { data, checksum, middle });
                }
            }
            entries.push(Entry::Write(WriteRun {
                bank: true,
                object,
                start: LogicalBlock(start.0 + done as u64),
                middle,
                physical,
                checksums,
            }));
            bank_runs.push((physical, count));
            done += count;
            reservation.use_blocks(count as u64);
        }
        Ok(done as u64)
    }

    /// The bank that takes the next block; opens one where needed, and where there is no room for it, takes the other.
    fn open_bank(&mut self, heat: Heat, entries: &mut Vec<Entry>) -> Result<BankId, StoreError> {
        let has_room = |bank: &BankId| self.banks.get(bank).is_some_and(|bank| bank.free_slots() > 0);
        if let Some(bank) = self.current_banks[heat as usize].filter(has_room) {
            return Ok(bank);
        }
        let stripes = bank_stripes(&self.geometry);
        let Some(range) = self.segments.allocate(Class::Bank(heat), stripes) else {
            if let Some(bank) = self.current_banks.into_iter().flatten().find(has_room) {
                return Ok(bank);
            }
            // Reservations keep this from happening; should one be wrong, the volume stays consistent and stops.
            let error = StoreError::new(ErrorKind::NoSpace, "open bank", "data region", "no stripe is left");
            self.failed = Some(error.clone());
            return Err(error);
        };
        let bank_id = self.next_bank;
        self.next_bank += 1;
        let start = self.geometry.stripe_start(range.segment, range.first);
        let pin = self.segments.pin(range.segment);
        let stripe_blocks = self.stripe_blocks();
        let block_count = range.count * stripe_blocks as u32;
        let area = self.keep.as_mut().and_then(|keep| keep.take_area(start, block_count));
        self.banks.insert(bank_id, Bank::new(range, start, stripe_blocks, pin, area));
        self.current_banks[heat as usize] = Some(bank_id);
        entries.push(Entry::Bank {
            segment: range.segment,
            first_stripe: range.first.0,
            stripe_count: range.count,
        });
        Ok(bank_id)
    }
}

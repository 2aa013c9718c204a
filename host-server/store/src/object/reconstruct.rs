//! Computing the blocks that components do not give from those that others do.
//!
//! A *row* is a block's index in its column, counted through the stripes of the segment. The blocks of one row, one of each
//! column, belong together: any K give the others.

use std::future::{Future, ready};
use std::ops::Range;
use std::pin::Pin;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};

use super::Object;
use super::component::Component;
use super::erasure::Decoder;
use crate::address::{BlockChecksum, ColumnIndex, PhysicalBlock, SegmentId, StripeIndex};
use crate::error::{ErrorKind, StoreError};
use crate::format::checksum::block_checksum;
use crate::geometry::{ColumnBlock, Geometry};

/// The checksums of all columns of a segment, parity included: the segment's summary.
pub trait ChecksumSource {
    /// Brings the checksums of a segment within reach. Called before the first [`checksum`](Self::checksum) of a read
    /// that has something to reconstruct, and only then.
    fn load<'a>(&'a self, segment: SegmentId) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        let _ = segment;
        Box::pin(ready(()))
    }

    /// The checksum of a block, if known. Blocks of unknown checksum are used for reconstruction only where nothing better
    /// is left, and the result is verified in any case.
    fn checksum(&self, place: ColumnBlock) -> Option<BlockChecksum>;
}

/// Rows of one column, as they came from its component.
pub(super) struct Image {
    pub(super) column: ColumnIndex,
    pub(super) rows: Range<u32>,
    pub(super) bytes: Slice,
}

/// Rows of one column, computed from others.
struct Rebuilt {
    column: ColumnIndex,
    rows: Range<u32>,
    bytes: Buffer,
}

/// A block that is wanted and that its component did not give.
#[derive(Clone, Copy)]
pub(super) struct Missing {
    pub(super) column: ColumnIndex,
    pub(super) row: u32,
    pub(super) expected: BlockChecksum,
}

/// One read of data blocks, or one step of a rebuild.
pub(super) struct Reading<'a> {
    pub(super) object: &'a Object,
    pub(super) segment: SegmentId,
    /// The request: where it begins, and what is expected there. Empty for a rebuild, which goes by the summary alone.
    pub(super) first: PhysicalBlock,
    pub(super) expected: &'a [BlockChecksum],
    pub(super) images: Vec<Image>,
}

pub(super) fn block_range(rows: &Range<u32>, row: u32) -> Range<usize> {
    let start = (row - rows.start) as usize * BLOCK_BYTES;
    start..start + BLOCK_BYTES
}

/// The smallest range that covers both.
pub(super) fn hull(a: Range<u32>, b: Range<u32>) -> Range<u32> {
    if a.is_empty() {
        return b;
    }
    if b.is_empty() {
        return a;
    }
    a.start.min(b.start)..a.end.max(b.end)
}

/// The first image that holds the block. A later one of the same column repeats what was already found wanting.
pub(super) fn find(images: &[Image], column: ColumnIndex, row: u32) -> Option<&Image> {
    images.iter().find(|image| image.column == column && image.rows.contains(&row))
}

impl Reading<'_> {
    pub(super) fn geometry(&self) -> &Geometry {
        &self.object.geometry
    }

    pub(super) fn component(&self, column: ColumnIndex) -> &Component {
        let position = self.geometry().position_of(self.segment, column);
        &self.object.components[usize::from(position.0)]
    }

    pub(super) fn place(&self, column: ColumnIndex, row: u32) -> ColumnBlock {
        let blocks = self.geometry().blocks_per_unit();
        let stripe = StripeIndex(row / blocks);
        ColumnBlock { segment: self.segment, stripe, column, block_in_unit: row % blocks }
    }

    /// The block's index in the request, if it was asked for.
    pub(super) fn requested(&self, column: ColumnIndex, row: u32) -> Option<usize> {
        if column.0 >= self.geometry().data_columns {
            return None;
        }
        let physical = self.geometry().physical(self.place(column, row));
        let index = physical.0.checked_sub(self.first.0)?;
        usize::try_from(index).ok().filter(|index| *index < self.expected.len())
    }

    /// Reads rows of several columns at once. What fails is counted and stays out.
    pub(super) async fn fetch(&mut self, wanted: Vec<(ColumnIndex, Range<u32>)>) {
        let reads: Vec<_> = wanted
            .into_iter()
            .filter_map(|(column, rows)| {
                let position = self.geometry().position_of(self.segment, column);
                let start_bytes = self.geometry().unit_offset(position, self.segment, StripeIndex(0));
                let offset_bytes = start_bytes + u64::from(rows.start) * BLOCK_BYTES as u64;
                let read = self.component(column).read(offset_bytes, rows.len() * BLOCK_BYTES)?;
                Some((column, rows, read))
            })
            .collect();
        for (column, rows, read) in reads {
            match read.await {
                Ok(buffer) => {
                    self.component(column).note_read();
                    self.images.push(Image { column, rows, bytes: buffer.freeze() });
                }
                Err(error) => {
                    let component = self.component(column);
                    self.object.note_read_error(component, &error);
                    if let Some(events) = component.log_turn() {
                        tracing::warn!(
                            volume = %self.object.volume,
                            position = component.position.0,
                            path = %component.path.display(),
                            %error,
                            events,
                            "a component failed a read; the data is computed from the others. Where this goes on, the \
                             device is failing: replace it"
                        );
                    }
                }
            }
        }
    }

    pub(super) fn read_block(&self, column: ColumnIndex, row: u32) -> Option<&[u8]> {
        find(&self.images, column, row).map(|image| &image.bytes[block_range(&image.rows, row)])
    }

    /// K columns to compute a row from, without `lost`: verified ones, then, if those are too few, ones of unknown checksum.
    fn sources(
        &self,
        row: u32,
        lost: &[ColumnIndex],
        summary: &dyn ChecksumSource,
    ) -> Option<Vec<ColumnIndex>> {
        let mut sources = Vec::new();
        let mut unknown = Vec::new();
        for column in (0..self.geometry().column_count()).map(ColumnIndex) {
            let Some(block) = self.read_block(column, row).filter(|_| !lost.contains(&column)) else {
                continue;
            };
            // A requested block that is not lost has been verified.
            if self.requested(column, row).is_some() {
                sources.push(column);
                continue;
            }
            match summary.checksum(self.place(column, row)) {
                Some(checksum) if checksum == block_checksum(block) => sources.push(column),
                Some(_) => {}
                None => unknown.push(column),
            }
            if sources.len() == usize::from(self.geometry().data_columns) {
                break;
            }
        }
        sources.extend(unknown);
        sources.truncate(usize::from(self.geometry().data_columns));
        // One order for each choice, so that decoders can be reused.
        sources.sort();
        (sources.len() == usize::from(self.geometry().data_columns)).then_some(sources)
    }

    /// Computes what is missing, in order of row and column, from what has been read.
    pub(super) fn reconstruct(
        &self,
        missing: &[Missing],
        summary: &dyn ChecksumSource,
    ) -> Result<Vec<Image>, StoreError> {
        let mut rebuilt = self.room_for(missing);
        let mut decoder: Option<(Vec<ColumnIndex>, Vec<ColumnIndex>, Decoder)> = None;
        for of_row in missing.chunk_by(|a, b| a.row == b.row) {
            let row = of_row[0].row;
            let lost: Vec<ColumnIndex> = of_row.iter().map(|missing| missing.column).collect();
            let Some(sources) = self.sources(row, &lost, summary) else {
                return Err(self.irrecoverable(of_row[0], summary));
            };
            let reusable =
                decoder.take().filter(|(of_sources, of_lost, _)| *of_sources == sources && *of_lost == lost);
            let (sources, lost, decode) = decoder.insert(reusable.unwrap_or_else(|| {
                let decode = self.object.code.decoder(&sources, &lost);
                (sources, lost, decode)
            }));
            let inputs: Vec<&[u8]> =
                sources.iter().filter_map(|column| self.read_block(*column, row)).collect();
            // `room_for` and `lost` are both in order of column.
            let mut outputs: Vec<&mut [u8]> = rebuilt
                .iter_mut()
                .filter(|rebuilt| lost.contains(&rebuilt.column))
                .map(|rebuilt| &mut rebuilt.bytes[block_range(&rebuilt.rows, row)])
                .collect();
            decode.decode(&inputs, &mut outputs);
            for (missing, output) in of_row.iter().zip(&outputs) {
                if block_checksum(output) != missing.expected {
                    return Err(self.irrecoverable(*missing, summary));
                }
            }
        }
        for missing in missing {
            let is_damaged = self.read_block(missing.column, missing.row).is_some();
            self.component(missing.column).count(|counters| {
                counters.damaged_blocks += u64::from(is_damaged);
                counters.reconstructed_blocks += 1;
            });
        }
        let frozen = rebuilt.into_iter().map(|rebuilt| Image {
            column: rebuilt.column,
            rows: rebuilt.rows,
            bytes: rebuilt.bytes.freeze(),
        });
        Ok(frozen.collect())
    }

    /// One buffer a column, in order of column, over all of its missing rows.
    fn room_for(&self, missing: &[Missing]) -> Vec<Rebuilt> {
        (0..self.geometry().column_count())
            .map(ColumnIndex)
            .filter_map(|column| {
                let of_column = missing.iter().filter(|missing| missing.column == column);
                let (count, rows) = of_column.fold((0, 0..0), |(count, rows), missing| {
                    (count + 1, hull(rows, missing.row..missing.row + 1))
                });
                let len_bytes = rows.len() * BLOCK_BYTES;
                // Rows between missing ones are not computed: they must hold nobody's bytes.
                let bytes = match count {
                    0 => return None,
                    count if count == rows.len() => Buffer::for_overwrite(len_bytes),
                    _ => Buffer::zeroed(len_bytes),
                };
                Some(Rebuilt { column, rows, bytes })
            })
            .collect()
    }

    /// Reads what is still unread of the rows in question, block by block: one bad sector may have failed a long read.
    pub(super) async fn widen(&mut self, missing: &[Missing]) {
        let mut rows: Vec<u32> = missing.iter().map(|missing| missing.row).collect();
        rows.dedup();
        let mut wanted = Vec::new();
        for column in (0..self.geometry().column_count()).map(ColumnIndex) {
            let unread = rows.iter().filter(|row| find(&self.images, column, **row).is_none());
            wanted.extend(unread.map(|row| (column, *row..row + 1)));
        }
        self.fetch(wanted).await;
    }

    fn irrecoverable(&self, lost: Missing, summary: &dyn ChecksumSource) -> StoreError {
        let Missing { column, row, .. } = lost;
        let found: Vec<String> = (0..self.geometry().column_count())
            .map(ColumnIndex)
            .filter_map(|column| {
                let component = self.component(column);
                let Some(block) = self.read_block(column, row) else {
                    return Some(format!("{component} gives nothing"));
                };
                let expected = match self.requested(column, row) {
                    Some(index) => Some(self.expected[index]),
                    None => summary.checksum(self.place(column, row)),
                };
                (expected? != block_checksum(block)).then(|| format!("{component} gives wrong bytes"))
            })
            .collect();
        StoreError::new(
            ErrorKind::Damaged,
            "read",
            match self.requested(column, row) {
                Some(index) => {
                    let physical = self.first.0 + index as u64;
                    format!(
                        "physical block {physical} ({} on {})",
                        self.place(column, row),
                        self.component(column)
                    )
                }
                None => format!("{} on {}", self.place(column, row), self.component(column)),
            },
            if found.is_empty() { "columns that do not fit together".to_owned() } else { found.join(", ") },
        )
        .expected(format!("{} valid columns", self.geometry().data_columns))
        .advice("bring back missing components, if any, or restore the file that holds the block")
    }

    /// Computes one column of some rows from the others: those blocks that the summary knows, in runs of consecutive rows,
    /// each with its first row. The caller has loaded the segment's checksums.
    pub(super) async fn rebuild_rows(
        object: &Object,
        segment: SegmentId,
        column: ColumnIndex,
        rows: Range<u32>,
        summary: &dyn ChecksumSource,
    ) -> Result<Vec<(u32, Slice)>, StoreError> {
        let mut reading =
            Reading { object, segment, first: PhysicalBlock(0), expected: &[], images: Vec::new() };
        let missing: Vec<Missing> = rows
            .filter_map(|row| {
                let expected = summary.checksum(reading.place(column, row))?;
                Some(Missing { column, row, expected })
            })
            .collect();
        let (Some(first), Some(last)) = (missing.first(), missing.last()) else { return Ok(Vec::new()) };
        let wanted = (0..reading.geometry().column_count())
            .map(ColumnIndex)
            .filter(|source| *source != column && reading.component(*source).is_live())
            .take(usize::from(reading.geometry().data_columns))
            .map(|source| (source, first.row..last.row + 1))
            .collect();
        reading.fetch(wanted).await;
        let rebuilt = match reading.reconstruct(&missing, summary) {
            Ok(rebuilt) => rebuilt,
            Err(_) => {
                reading.widen(&missing).await;
                reading.reconstruct(&missing, summary)?
            }
        };
        let mut runs = Vec::new();
        for run in missing.chunk_by(|a, b| a.row + 1 == b.row) {
            let (first, last) = (run[0].row, run[run.len() - 1].row);
            if let Some(image) = find(&rebuilt, column, first) {
                let bytes = block_range(&image.rows, first).start..block_range(&image.rows, last).end;
                runs.push((first, image.bytes.slice(bytes)));
            }
        }
        Ok(runs)
    }
}

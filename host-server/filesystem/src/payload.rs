//! From the bytes of a write to whole, aligned blocks.

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};

use crate::operation::Payload;

/// Walks over the pieces of a payload.
struct Cursor<'a> {
    pieces: std::slice::Iter<'a, Slice>,
    rest: Option<Slice>,
}

impl<'a> Cursor<'a> {
    fn new(payload: &'a Payload) -> Self {
        Self { pieces: payload.pieces.iter(), rest: None }
    }

    /// What is left of the current piece; never empty.
    fn rest(&mut self) -> Option<&Slice> {
        while self.rest.as_ref().is_none_or(|rest| rest.is_empty()) {
            self.rest = Some(self.pieces.next()?.clone());
        }
        self.rest.as_ref()
    }

    fn advance(&mut self, len_bytes: usize) {
        if let Some(rest) = &mut self.rest {
            *rest = rest.slice(len_bytes..rest.len());
        }
    }

    /// Copies as much as there is room and payload for; says how much.
    fn copy_to(&mut self, target: &mut [u8]) -> usize {
        let mut copied = 0;
        while copied < target.len() {
            let Some(rest) = self.rest() else { break };
            let len_bytes = rest.len().min(target.len() - copied);
            target[copied..copied + len_bytes].copy_from_slice(&rest[..len_bytes]);
            self.advance(len_bytes);
            copied += len_bytes;
        }
        copied
    }
}

/// Contents of the blocks that a write of `payload`, not empty, at `offset_bytes` touches. `first` and `last` are the contents that the first
/// and last block had, as far as they matter; zeros where absent. Pieces that already lie as they should are not copied.
pub(crate) fn assemble(
    offset_bytes: u64,
    payload: &Payload,
    first: Option<&[u8]>,
    last: Option<&[u8]>,
) -> Vec<Slice> {
    let into = (offset_bytes % BLOCK_BYTES as u64) as usize;
    let mut cursor = Cursor::new(payload);
    let mut left = payload.len_bytes();
    let mut slices = Vec::new();
    let mut at = into;
    while left > 0 {
        let Some(rest) = cursor.rest() else { break };
        let whole = rest.len() / BLOCK_BYTES * BLOCK_BYTES;
        if at == 0 && whole > 0 && rest.slice(0..whole).is_block_aligned() {
            slices.push(rest.slice(0..whole));
            cursor.advance(whole);
            left -= whole;
            continue;
        }
        // Copied: what is left of this block, or the whole blocks of a piece that lies askew in memory.
        let end = if at == 0 { whole.max(BLOCK_BYTES) } else { BLOCK_BYTES }.min(at + left);
        let mut buffer = Buffer::zeroed(end.next_multiple_of(BLOCK_BYTES));
        let old = if at > 0 {
            first
        } else if end < BLOCK_BYTES {
            last
        } else {
            None
        };
        if let Some(old) = old {
            buffer[..BLOCK_BYTES].copy_from_slice(&old[..BLOCK_BYTES]);
        }
        left -= cursor.copy_to(&mut buffer[at..end]);
        slices.push(buffer.freeze());
        at = 0;
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `len_bytes` bytes that differ from their neighbours, starting `skew` bytes into a block of memory.
    fn piece(seed: u8, skew: usize, len_bytes: usize) -> Slice {
        let bytes: Vec<u8> =
            (0..skew + len_bytes).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed)).collect();
        Slice::copy_of(&bytes).slice(skew..skew + len_bytes)
    }

    #[test]
    fn every_shape_of_a_write_lands_where_it_should() {
        let lengths = [1, 100, 4095, 4096, 4097, 8192, 12_300];
        for offset in [0_u64, 1, 100, 4095, 4096, 5000] {
            for &first_len in &lengths {
                for &second_len in &lengths {
                    for skew in [0, 1, 2048] {
                        let payload = Payload {
                            pieces: vec![
                                piece(1, skew, first_len),
                                Slice::copy_of(&[]).slice(0..0),
                                piece(2, 0, second_len),
                            ],
                        };
                        let into = offset as usize % BLOCK_BYTES;
                        let end = into + payload.len_bytes();
                        let mut old = vec![0xaa; end.next_multiple_of(BLOCK_BYTES)];
                        let (first, last) = (old[..BLOCK_BYTES].to_vec(), [0xbb; BLOCK_BYTES]);
                        if end > BLOCK_BYTES && !end.is_multiple_of(BLOCK_BYTES) {
                            let start = end / BLOCK_BYTES * BLOCK_BYTES;
                            old[start..].copy_from_slice(&last);
                        }
                        let last = if end <= BLOCK_BYTES { &first[..] } else { &last[..] };
                        let slices = assemble(offset, &payload, Some(&first), Some(last));
                        assert!(slices.iter().all(|slice| slice.is_block_aligned() && !slice.is_empty()));
                        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
                        old[into..end].copy_from_slice(
                            &payload.pieces.iter().flat_map(|piece| piece.to_vec()).collect::<Vec<_>>(),
                        );
                        assert!(bytes == old, "{first_len} and {second_len} at {offset}, skewed by {skew}");
                    }
                }
            }
        }
    }

    #[test]
    fn aligned_pieces_are_not_copied() {
        let body = piece(1, 0, 8 * BLOCK_BYTES);
        let payload = Payload { pieces: vec![piece(2, 0, 96), body.clone(), piece(3, 0, 10)] };
        let slices = assemble(4000, &payload, None, None);
        assert_eq!(slices.iter().map(|slice| slice.len()).collect::<Vec<_>>(), [4096, 8 * 4096, 4096]);
        assert_eq!(slices[1].as_ptr(), body.as_ptr());
        assert!(slices[2][10..].iter().all(|&byte| byte == 0));
    }
}

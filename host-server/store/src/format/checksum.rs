//! CRC-32C, the one checksum of everything at rest.

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};

use super::crc32c as vectors;
use crate::address::BlockChecksum;

/// Checksum of a block's contents.
pub fn block_checksum(block: &[u8]) -> BlockChecksum {
    BlockChecksum(crc32c(block))
}

/// CRC-32C of bytes that are not a block.
pub fn crc32c(bytes: &[u8]) -> u32 {
    match vectors::update(!0, bytes) {
        Some(state) => !state,
        None => crc32_iscsi(bytes),
    }
}

/// CRC-32C of pieces as if they were one.
pub fn crc32c_of_pieces(pieces: &[&[u8]]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_the_checksum_that_it_has_in_pieces() {
        let block: Vec<u8> = (0..4096u32).map(|at| ((at * at) >> 7) as u8).collect();
        let pieces: Vec<&[u8]> = block.chunks(100).collect();
        assert_eq!(block_checksum(&block), BlockChecksum(crc32c_of_pieces(&pieces)));
        assert_eq!(crc32c(&block), crc32_iscsi(&block));
    }

    #[test]
    fn checksums_are_crc32c() {
        // The check value that RFC 3720's polynomial is known by.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c_of_pieces(&[b"1234", b"", b"56789"]), 0xe306_9283);
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }
}

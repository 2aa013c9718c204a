//! SipHash-2-4: where a name lies in its directory. Part of the format: the keys of entries at rest depend on it.

fn rounds(state: &mut [u64; 4], count: usize) {
    let [v0, v1, v2, v3] = state;
    for _ in 0..count {
        *v0 = v0.wrapping_add(*v1);
        *v1 = v1.rotate_left(13) ^ *v0;
        *v0 = v0.rotate_left(32);
        *v2 = v2.wrapping_add(*v3);
        *v3 = v3.rotate_left(16) ^ *v2;
        *v0 = v0.wrapping_add(*v3);
        *v3 = v3.rotate_left(21) ^ *v0;
        *v2 = v2.wrapping_add(*v1);
        *v1 = v1.rotate_left(17) ^ *v2;
        *v2 = v2.rotate_left(32);
    }
}

fn siphash(key: [u64; 2], bytes: &[u8]) -> u64 {
    let mut state = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    last[7] = bytes.len() as u8;
    for word in words.iter().chain([&last]) {
        let word = u64::from_le_bytes(*word);
        state[3] ^= word;
        rounds(&mut state, 2);
        state[0] ^= word;
    }
    state[2] ^= 0xff;
    rounds(&mut state, 4);
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

/// How many names of one directory may share a hash.
pub(crate) const SLOTS_PER_HASH: u64 = 256;

/// The first of the [`SLOTS_PER_HASH`] places where a name may lie: a multiple of it, never 0, the last place below
/// `i64::MAX`. Doubles as the cookie of reading a directory, hence the bounds.
pub(crate) fn first_slot(key: [u64; 2], name: &[u8]) -> u64 {
    (siphash(key, name) >> 10).max(1) * SLOTS_PER_HASH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_siphash_2_4() {
        // Vectors of the reference implementation: key 00..0f, messages of 0, 1 and 15 bytes 00, 01, …
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let message: Vec<u8> = (0..15).collect();
        assert_eq!(siphash(key, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash(key, &message[..1]), 0x74f8_39c5_93dc_67fd);
        assert_eq!(siphash(key, &message), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn slots_leave_room_for_the_first_cookies_and_stay_positive() {
        for number in 0_u64..10_000 {
            let slot = first_slot([number, 3], &number.to_le_bytes());
            assert!(slot >= SLOTS_PER_HASH && slot.is_multiple_of(SLOTS_PER_HASH));
            assert!(slot + SLOTS_PER_HASH - 1 < i64::MAX as u64);
        }
    }
}

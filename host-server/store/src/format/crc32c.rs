//! CRC-32C of long runs of bytes, where the processor has carry-less multiplication of 512-bit vectors.
//!
//! Two units work at once: the multiplier folds eight vectors over each other, and the checksum instruction takes three
//! streams of words that lie behind them. Each alone is the limit of its own way; what they found is joined at the end. The
//! number is that of any other way.
//!
//! This file may use `unsafe`: the vector kernel reads through pointers.
#![allow(unsafe_code)]

/// Shorter runs gain nothing.
const LEN_BYTES_MIN: usize = 2048;

/// Continues `state`, the bit-inverted checksum so far, over `bytes`. None where this processor or so short a run is better
/// served otherwise.
pub(super) fn update(state: u32, bytes: &[u8]) -> Option<u32> {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= LEN_BYTES_MIN && x86::is_available() {
        // SAFETY: the processor has the features.
        return Some(unsafe { x86::update(state, bytes) });
    }
    let _ = (state, bytes);
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512i, _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u64, _mm_cvtsi64_si128, _mm_cvtsi128_si64,
        _mm512_clmulepi64_epi128, _mm512_loadu_si512, _mm512_set_epi64, _mm512_storeu_si512,
        _mm512_ternarylogic_epi64, _mm512_xor_si512,
    };

    /// x^32 + …, without the leading term, the highest power in the highest bit.
    const POLYNOMIAL: u32 = 0x1edc_6f41;
    const VECTOR_BYTES: usize = 64;
    const LANES: usize = 8;
    /// Three inputs' exclusive or.
    const XOR3: i32 = 0x96;

    pub(super) fn is_available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("sse4.2")
    }

    /// `remainder` times x^`exponent`, modulo the polynomial.
    const fn power_from(mut remainder: u32, exponent: u32) -> u32 {
        let mut done = 0;
        while done < exponent {
            remainder = (remainder << 1) ^ (if remainder >> 31 == 1 { POLYNOMIAL } else { 0 });
            done += 1;
        }
        remainder
    }

    /// Bits in the checksum's order, shifted by one since the product of two reversed numbers comes out one bit low.
    const fn reversed(remainder: u32) -> i64 {
        (remainder.reverse_bits() as i64) << 1
    }

    /// What moves a 128-bit lane over `bytes`: a factor for its low half, which comes first and is farther, and for its high.
    const fn factors(bytes: usize) -> (i64, i64) {
        let bits = bytes as u32 * 8;
        (reversed(power_from(1, bits + 32)), reversed(power_from(1, bits - 32)))
    }

    const OVER_8: (i64, i64) = factors(8 * VECTOR_BYTES);
    const OVER_4: (i64, i64) = factors(4 * VECTOR_BYTES);
    const OVER_2: (i64, i64) = factors(2 * VECTOR_BYTES);
    const OVER_1: (i64, i64) = factors(VECTOR_BYTES);

    /// # Safety
    /// The processor has AVX-512F.
    #[target_feature(enable = "avx512f")]
    unsafe fn in_every_lane((low, high): (i64, i64)) -> __m512i {
        _mm512_set_epi64(high, low, high, low, high, low, high, low)
    }

    /// Moves `sum` by what `factors` say and adds `next`, which lies there.
    ///
    /// # Safety
    /// The processor has AVX-512F and VPCLMULQDQ.
    #[inline]
    #[target_feature(enable = "avx512f,vpclmulqdq")]
    unsafe fn fold(sum: __m512i, factors: __m512i, next: __m512i) -> __m512i {
        let low = _mm512_clmulepi64_epi128::<0x00>(sum, factors);
        let high = _mm512_clmulepi64_epi128::<0x11>(sum, factors);
        _mm512_ternarylogic_epi64::<XOR3>(low, high, next)
    }

    /// Bytes that the eight vectors take in one step.
    const WIDE_BYTES: usize = LANES * VECTOR_BYTES;
    /// Bytes that each stream takes meanwhile, a word for each vector: both units are then done at about the same time.
    const STREAM_BYTES: usize = 8 * LANES;
    const STEP_BYTES: usize = WIDE_BYTES + 3 * STREAM_BYTES;
    /// Steps before the parts are joined. More gain nothing.
    const STEPS_MAX: usize = 64;

    /// Factors that move a state over so many times [`STREAM_BYTES`].
    const OVER_STREAMS: [i64; 3 * STEPS_MAX + 1] = {
        let mut factors = [0; 3 * STEPS_MAX + 1];
        let mut remainder = power_from(1, (STREAM_BYTES * 8 - 32) as u32);
        let mut index = 1;
        while index < factors.len() {
            factors[index] = reversed(remainder);
            remainder = power_from(remainder, (STREAM_BYTES * 8) as u32);
            index += 1;
        }
        factors
    };

    /// # Safety
    /// The processor has what [`is_available`] asks for.
    #[target_feature(enable = "avx512f,vpclmulqdq,pclmulqdq,sse4.2")]
    pub(super) unsafe fn update(mut state: u32, mut bytes: &[u8]) -> u32 {
        // SAFETY: the processor has the features; there are `steps` steps.
        unsafe {
            while bytes.len() >= WIDE_BYTES + STEP_BYTES {
                let steps = ((bytes.len() - WIDE_BYTES) / STEP_BYTES).min(STEPS_MAX);
                let (now, later) = bytes.split_at(WIDE_BYTES + steps * STEP_BYTES);
                state = take_steps(state, now, steps);
                bytes = later;
            }
            finish(state.into(), bytes)
        }
    }

    /// # Safety
    /// As for [`update`]; `bytes` are WIDE_BYTES and `steps` times STEP_BYTES, and `steps` from one to STEPS_MAX.
    #[target_feature(enable = "avx512f,vpclmulqdq,pclmulqdq,sse4.2")]
    unsafe fn take_steps(state: u32, bytes: &[u8], steps: usize) -> u32 {
        assert!((1..=STEPS_MAX).contains(&steps) && bytes.len() == WIDE_BYTES + steps * STEP_BYTES);
        let (wide, streams) = bytes.split_at(WIDE_BYTES + steps * WIDE_BYTES);
        let (first, streams) = streams.split_at(steps * STREAM_BYTES);
        let (second, third) = streams.split_at(steps * STREAM_BYTES);
        // SAFETY: callers stay within `wide`, asserted above to be long enough.
        let load = |at: usize| unsafe { _mm512_loadu_si512(wide.as_ptr().add(at).cast()) };
        let mut sums: [__m512i; LANES] = std::array::from_fn(|lane| load(lane * VECTOR_BYTES));
        // The state so far is as good as a change to the first bytes.
        sums[0] = _mm512_xor_si512(sums[0], _mm512_set_epi64(0, 0, 0, 0, 0, 0, 0, i64::from(state)));
        let [mut one, mut two, mut three] = [0u64; 3];
        // SAFETY: the processor has the features; step `step` reads the vectors and words of that number.
        unsafe {
            let over_8 = in_every_lane(OVER_8);
            for step in 0..steps {
                let word = |stream: &[u8], index: usize| {
                    u64::from_le(
                        stream.as_ptr().add(step * STREAM_BYTES + index * 8).cast::<u64>().read_unaligned(),
                    )
                };
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let next = load((step + 1) * WIDE_BYTES + lane * VECTOR_BYTES);
                    *sum = fold(*sum, over_8, next);
                    one = _mm_crc32_u64(one, word(first, lane));
                    two = _mm_crc32_u64(two, word(second, lane));
                    three = _mm_crc32_u64(three, word(third, lane));
                }
            }
            let (over_4, over_2, over_1) =
                (in_every_lane(OVER_4), in_every_lane(OVER_2), in_every_lane(OVER_1));
            let fours: [__m512i; 4] = std::array::from_fn(|lane| fold(sums[lane], over_4, sums[lane + 4]));
            let twos: [__m512i; 2] = std::array::from_fn(|lane| fold(fours[lane], over_2, fours[lane + 2]));
            let sum = fold(twos[0], over_1, twos[1]);
            let mut words = [0u64; VECTOR_BYTES / 8];
            _mm512_storeu_si512(words.as_mut_ptr().cast(), sum);
            // What is left is as good as a message of this length, begun with nothing.
            let vectors = words.into_iter().fold(0, |state, word| _mm_crc32_u64(state, word));
            let behind = shifted(vectors, 3 * steps) ^ shifted(one, 2 * steps) ^ shifted(two, steps);
            (_mm_crc32_u64(0, behind) ^ three) as u32
        }
    }

    /// What [`_mm_crc32_u64`] reduces to `state` moved over so many times [`STREAM_BYTES`].
    ///
    /// # Safety
    /// The processor has PCLMULQDQ.
    #[target_feature(enable = "pclmulqdq")]
    unsafe fn shifted(state: u64, streams: usize) -> u64 {
        let factor = _mm_cvtsi64_si128(OVER_STREAMS[streams]);
        _mm_cvtsi128_si64(_mm_clmulepi64_si128::<0>(_mm_cvtsi64_si128(state as i64), factor)) as u64
    }

    /// # Safety
    /// The processor has SSE 4.2.
    #[target_feature(enable = "sse4.2")]
    unsafe fn finish(state: u64, tail: &[u8]) -> u32 {
        let (words, bytes) = tail.as_chunks::<8>();
        let state = words.iter().fold(state, |state, word| _mm_crc32_u64(state, u64::from_le_bytes(*word)));
        bytes.iter().fold(state as u32, |state, byte| _mm_crc32_u8(state, *byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_place_gives_the_checksum_that_bit_by_bit_arithmetic_gives() {
        // More than the steps between two joins.
        let bytes: Vec<u8> = (0..100_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for start in 0..3 {
            for end in (start + LEN_BYTES_MIN..5500).step_by(7).chain([bytes.len()]) {
                let run = &bytes[start..end];
                let initial = 0xffff_ffff ^ end as u32;
                let expected = run.iter().fold(initial, |state, byte| {
                    (0..8).fold(state ^ u32::from(*byte), |state, _| {
                        (state >> 1) ^ (if state & 1 == 1 { 0x82f6_3b78 } else { 0 })
                    })
                });
                // Where the processor lacks it there is nothing to compare.
                if let Some(found) = update(initial, run) {
                    assert_eq!(found, expected, "{start}..{end}");
                }
            }
        }
    }
}

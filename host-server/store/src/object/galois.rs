//! Arithmetic in GF(2^8) over bulk data, with the polynomial 0x11d.
//!
//! [`Coefficients`] is a matrix prepared for every kernel; [`multiply`] computes `outputs = matrix × sources` byte by
//! byte. The kernel is chosen once, by what the processor offers; all give the same bytes.
//!
//! This file may use `unsafe`: the vector kernels read and write through pointers.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// x^8 + x^4 + x^3 + x^2 + 1.
const POLYNOMIAL: u16 = 0x11d;
/// Outputs computed in one pass over the sources; limited by vector registers and by the lost columns of a stripe.
pub(super) const OUTPUTS_MAX: usize = 3;
/// Sources of one pass.
pub(super) const SOURCES_MAX: usize = 16;

/// Discrete exponentials (twice over, so that sums of logarithms need no reduction) and logarithms.
const TABLES: ([u8; 512], [u8; 256]) = {
    let mut exponentials = [0u8; 512];
    let mut logarithms = [0u8; 256];
    let mut value = 1u16;
    let mut exponent = 0;
    while exponent < 255 {
        exponentials[exponent] = value as u8;
        exponentials[exponent + 255] = value as u8;
        logarithms[value as usize] = exponent as u8;
        value <<= 1;
        if value & 0x100 != 0 {
            value ^= POLYNOMIAL;
        }
        exponent += 1;
    }
    (exponentials, logarithms)
};

/// Product of two field elements.
pub(super) fn product(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    let (exponentials, logarithms) = &TABLES;
    exponentials[usize::from(logarithms[usize::from(a)]) + usize::from(logarithms[usize::from(b)])]
}

/// Inverse of a field element other than zero.
pub(super) fn inverse(a: u8) -> u8 {
    assert!(a != 0, "zero has no inverse");
    let (exponentials, logarithms) = &TABLES;
    exponentials[255 - usize::from(logarithms[usize::from(a)])]
}

/// One coefficient in the shapes that the kernels want.
#[derive(Clone, Copy)]
struct Factor {
    /// Products with the low nibble of a byte, then with the high nibble.
    nibbles: [[u8; 16]; 2],
    /// The multiplication as an 8×8 bit matrix, in the order of `gf2p8affineqb`: byte 7 - i makes bit i.
    affine: u64,
}

impl Factor {
    fn new(coefficient: u8) -> Self {
        let mut nibbles = [[0; 16]; 2];
        for nibble in 0..16u8 {
            nibbles[0][usize::from(nibble)] = product(coefficient, nibble);
            nibbles[1][usize::from(nibble)] = product(coefficient, nibble << 4);
        }
        let mut affine = 0u64;
        for input_bit in 0..8 {
            let column = product(coefficient, 1 << input_bit);
            for output_bit in 0..8 {
                if column >> output_bit & 1 == 1 {
                    affine |= 1 << ((7 - output_bit) * 8 + input_bit);
                }
            }
        }
        Self { nibbles, affine }
    }

    fn apply(&self, byte: u8) -> u8 {
        self.nibbles[0][usize::from(byte & 15)] ^ self.nibbles[1][usize::from(byte >> 4)]
    }
}

/// A coefficient matrix, ready for use: a row for each output, a column for each source.
pub(super) struct Coefficients {
    outputs: usize,
    sources: usize,
    /// Row by row.
    factors: Vec<Factor>,
    /// The bit matrices once more, source by source: kernels load them beside each other.
    affine: Vec<u64>,
}

impl Coefficients {
    /// Prepares a matrix of at most [`OUTPUTS_MAX`] rows of equal length, at most [`SOURCES_MAX`].
    pub(super) fn new(rows: &[Vec<u8>]) -> Self {
        let sources = rows.first().map_or(0, Vec::len);
        assert!(rows.len() <= OUTPUTS_MAX && sources <= SOURCES_MAX);
        assert!(rows.iter().all(|row| row.len() == sources));
        let factors: Vec<Factor> =
            rows.iter().flatten().map(|coefficient| Factor::new(*coefficient)).collect();
        let affine = (0..sources)
            .flat_map(|source| factors.iter().skip(source).step_by(sources).map(|factor| factor.affine))
            .collect();
        Self { outputs: rows.len(), sources, factors, affine }
    }
}

/// The ways to multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    Scalar,
    Avx2,
    Avx2Gfni,
    Avx512Gfni,
}

impl Kernel {
    const ALL: [Kernel; 4] = [Kernel::Scalar, Kernel::Avx2, Kernel::Avx2Gfni, Kernel::Avx512Gfni];

    /// The kernels that this processor can run, slowest first.
    pub fn available() -> Vec<Kernel> {
        Self::ALL.into_iter().filter(|kernel| kernel.is_available()).collect()
    }

    /// Whether this processor can run it. Cheap: the answer is remembered.
    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx2 = || is_x86_feature_detected!("avx2");
        let gfni = || is_x86_feature_detected!("gfni");
        let avx512 = || is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        match self {
            Kernel::Scalar => true,
            Kernel::Avx2 => avx2(),
            Kernel::Avx2Gfni => avx2() && gfni(),
            Kernel::Avx512Gfni => avx512() && gfni(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Kernel::Scalar
    }

    /// The fastest kernel of this processor.
    pub fn best() -> Kernel {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().copied().unwrap_or(Kernel::Scalar))
    }
}

/// `outputs[i] = Σ coefficients[i][j] × sources[j]`, byte by byte. All slices have one length; any length and
/// alignment will do.
pub(super) fn multiply(coefficients: &Coefficients, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    multiply_with(Kernel::best(), coefficients, sources, outputs);
}

/// [`multiply`] with a chosen kernel, which this processor must be able to run.
pub(super) fn multiply_with(
    kernel: Kernel,
    coefficients: &Coefficients,
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
) {
    assert_eq!(sources.len(), coefficients.sources);
    assert_eq!(outputs.len(), coefficients.outputs);
    let len = outputs.first().map_or(0, |output| output.len());
    assert!(sources.iter().all(|source| source.len() == len));
    assert!(outputs.iter().all(|output| output.len() == len));
    let done = match kernel {
        Kernel::Scalar => 0,
        #[cfg(target_arch = "x86_64")]
        vector => x86::multiply(vector, coefficients, sources, outputs, len),
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("{kernel:?} on another architecture"),
    };
    scalar(coefficients, sources, outputs, done);
}

/// Everything from byte `start` on.
fn scalar(coefficients: &Coefficients, sources: &[&[u8]], outputs: &mut [&mut [u8]], start: usize) {
    for (row, output) in outputs.iter_mut().enumerate() {
        let output = &mut output[start..];
        output.fill(0);
        let factors = &coefficients.factors[row * coefficients.sources..][..coefficients.sources];
        for (factor, source) in factors.iter().zip(sources) {
            for (to, from) in output.iter_mut().zip(&source[start..]) {
                *to ^= factor.apply(*from);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, __m512i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256,
        _mm256_gf2p8affine_epi64_epi8, _mm256_loadu_si256, _mm256_set1_epi8, _mm256_set1_epi64x,
        _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_xor_si256,
        _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512, _mm512_set1_epi64, _mm512_setzero_si512,
        _mm512_storeu_si512, _mm512_xor_si512,
    };

    use super::{Coefficients, Factor, Kernel, OUTPUTS_MAX, SOURCES_MAX};

    /// Computes whole vectors from the start on; returns how many bytes are done. The caller has checked the
    /// number and the lengths (`len`) of sources and outputs.
    pub(super) fn multiply(
        kernel: Kernel,
        coefficients: &Coefficients,
        sources: &[&[u8]],
        outputs: &mut [&mut [u8]],
        len: usize,
    ) -> usize {
        match outputs {
            [] => 0,
            [_] => multiply_to::<1>(kernel, coefficients, sources, outputs, len),
            [_, _] => multiply_to::<2>(kernel, coefficients, sources, outputs, len),
            [..] => multiply_to::<OUTPUTS_MAX>(kernel, coefficients, sources, outputs, len),
        }
    }

    fn multiply_to<const N: usize>(
        kernel: Kernel,
        coefficients: &Coefficients,
        sources: &[&[u8]],
        outputs: &mut [&mut [u8]],
        len: usize,
    ) -> usize {
        assert!(kernel.is_available(), "{kernel:?} is not available here");
        assert!(outputs.len() == N && sources.len() <= SOURCES_MAX);
        assert!(
            coefficients.factors.len() == N * sources.len() && coefficients.affine.len() == N * sources.len()
        );
        // On the stack: for a block, an allocation would take as long as the arithmetic.
        let mut from = [std::ptr::null(); SOURCES_MAX];
        for (pointer, source) in from.iter_mut().zip(sources) {
            *pointer = source.as_ptr();
        }
        let from = &from[..sources.len()];
        let mut to = [std::ptr::null_mut(); N];
        for (pointer, output) in to.iter_mut().zip(outputs) {
            *pointer = output.as_mut_ptr();
        }
        // SAFETY: the processor has the features (asserted above); the pointers come from slices of `len` bytes each,
        // outputs exclusively borrowed; there is a factor for each pair of them (asserted above).
        unsafe {
            match kernel {
                Kernel::Scalar => 0,
                Kernel::Avx2 => avx2(&coefficients.factors, from, &to, len),
                Kernel::Avx2Gfni => avx2_gfni(&coefficients.affine, from, &to, len),
                Kernel::Avx512Gfni => avx512_gfni(&coefficients.affine, from, &to, len),
            }
        }
    }

    /// # Safety
    /// The processor has AVX2; every pointer of `from` is valid for reading `len` bytes, every pointer of `to` (there
    /// are N) for writing them; outputs overlap nothing; `factors` holds N rows of `from.len()`.
    #[target_feature(enable = "avx2")]
    unsafe fn avx2<const N: usize>(
        factors: &[Factor],
        from: &[*const u8],
        to: &[*mut u8; N],
        len: usize,
    ) -> usize {
        const STEP: usize = size_of::<__m256i>();
        let low_mask = _mm256_set1_epi8(15);
        let whole = len - len % STEP;
        for offset in (0..whole).step_by(STEP) {
            let mut sums = [_mm256_setzero_si256(); N];
            for (index, source) in from.iter().enumerate() {
                // SAFETY: `offset + STEP <= len`, for which the pointer is valid.
                let bytes = unsafe { _mm256_loadu_si256(source.add(offset).cast()) };
                let low = _mm256_and_si256(bytes, low_mask);
                let high = _mm256_and_si256(_mm256_srli_epi64::<4>(bytes), low_mask);
                for (row, sum) in sums.iter_mut().enumerate() {
                    let nibbles = &factors[row * from.len() + index].nibbles;
                    // SAFETY: both tables are 16 bytes long.
                    let (low_table, high_table): (__m128i, __m128i) = unsafe {
                        (
                            _mm_loadu_si128(nibbles[0].as_ptr().cast()),
                            _mm_loadu_si128(nibbles[1].as_ptr().cast()),
                        )
                    };
                    let low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(low_table), low);
                    let high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(high_table), high);
                    *sum = _mm256_xor_si256(*sum, _mm256_xor_si256(low, high));
                }
            }
            for (output, sum) in to.iter().zip(sums) {
                // SAFETY: `offset + STEP <= len`, for which the pointer is valid.
                unsafe { _mm256_storeu_si256(output.add(offset).cast(), sum) }
            }
        }
        whole
    }

    /// # Safety
    /// As for [`avx2`], but `affine` holds the factors' bit matrices, N for each source; and the processor has GFNI.
    #[target_feature(enable = "avx2,gfni")]
    unsafe fn avx2_gfni<const N: usize>(
        affine: &[u64],
        from: &[*const u8],
        to: &[*mut u8; N],
        len: usize,
    ) -> usize {
        const STEP: usize = size_of::<__m256i>();
        // Several vectors at a time hide the latency of the affine instruction and share the loads of factors; with
        // N times two sums and the bytes, the 16 registers hold all.
        const WIDE: usize = 2 * STEP;
        let whole = len - len % WIDE;
        for offset in (0..whole).step_by(WIDE) {
            let mut sums = [[_mm256_setzero_si256(); 2]; N];
            for (source, affine) in from.iter().zip(affine.chunks_exact(N)) {
                // SAFETY: `offset + WIDE <= len`, for which the pointer is valid.
                let bytes: [__m256i; 2] = std::array::from_fn(|vector| unsafe {
                    _mm256_loadu_si256(source.add(offset + vector * STEP).cast())
                });
                for (sums, affine) in sums.iter_mut().zip(affine) {
                    let affine = _mm256_set1_epi64x(*affine as i64);
                    for (sum, bytes) in sums.iter_mut().zip(bytes) {
                        *sum = _mm256_xor_si256(*sum, _mm256_gf2p8affine_epi64_epi8::<0>(bytes, affine));
                    }
                }
            }
            for (output, sums) in to.iter().zip(sums) {
                for (vector, sum) in sums.into_iter().enumerate() {
                    // SAFETY: `offset + WIDE <= len`, for which the pointer is valid.
                    unsafe { _mm256_storeu_si256(output.add(offset + vector * STEP).cast(), sum) }
                }
            }
        }
        whole
    }

    /// # Safety
    /// As for [`avx2_gfni`], and the processor has AVX-512F and AVX-512BW.
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    unsafe fn avx512_gfni<const N: usize>(
        affine: &[u64],
        from: &[*const u8],
        to: &[*mut u8; N],
        len: usize,
    ) -> usize {
        const STEP: usize = 64;
        // Four vectors at a time: N times four sums, the bytes and the factors fit into the 32 registers.
        const WIDE: usize = 4 * STEP;
        let whole = len - len % WIDE;
        for offset in (0..whole).step_by(WIDE) {
            let mut sums = [[_mm512_setzero_si512(); 4]; N];
            for (source, affine) in from.iter().zip(affine.chunks_exact(N)) {
                // SAFETY: `offset + WIDE <= len`, for which the pointer is valid.
                let bytes: [__m512i; 4] = std::array::from_fn(|vector| unsafe {
                    _mm512_loadu_si512(source.add(offset + vector * STEP).cast())
                });
                for (sums, affine) in sums.iter_mut().zip(affine) {
                    let affine = _mm512_set1_epi64(*affine as i64);
                    for (sum, bytes) in sums.iter_mut().zip(bytes) {
                        *sum = _mm512_xor_si512(*sum, _mm512_gf2p8affine_epi64_epi8::<0>(bytes, affine));
                    }
                }
            }
            for (output, sums) in to.iter().zip(sums) {
                for (vector, sum) in sums.into_iter().enumerate() {
                    // SAFETY: `offset + WIDE <= len`, for which the pointer is valid.
                    unsafe { _mm512_storeu_si512(output.add(offset + vector * STEP).cast(), sum) }
                }
            }
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    #[test]
    fn the_field_is_the_one_of_polynomial_11d() {
        assert_eq!(product(2, 0x80), 0x1d);
        assert_eq!(product(3, 7), 9);
        for a in 1..=255 {
            assert_eq!(product(a, inverse(a)), 1);
            assert_eq!(product(a, 1), a);
            assert_eq!(product(a, 0), 0);
        }
    }

    #[test]
    fn the_bit_matrix_and_the_nibble_tables_are_the_same_multiplication() {
        for coefficient in 0..=255 {
            let factor = Factor::new(coefficient);
            for byte in 0..=255u8 {
                let by_matrix = (0..8).fold(0, |sum, bit| {
                    let row = (factor.affine >> ((7 - bit) * 8)) as u8;
                    sum | (((row & byte).count_ones() as u8 & 1) << bit)
                });
                assert_eq!(by_matrix, product(coefficient, byte));
                assert_eq!(factor.apply(byte), product(coefficient, byte));
            }
        }
    }

    proptest! {
        #[test]
        fn every_kernel_agrees_with_the_definition(
            rows in 1..=OUTPUTS_MAX,
            columns in 1..=SOURCES_MAX,
            len in 0usize..700,
            shift in 0usize..64,
            matrix in prop::collection::vec(any::<u8>(), OUTPUTS_MAX * SOURCES_MAX),
            noise in prop::collection::vec(any::<u8>(), 1024),
        ) {
            let matrix: Vec<Vec<u8>> = (0..rows).map(|row| matrix[row * columns..][..columns].to_vec()).collect();
            let columns: Vec<Vec<u8>> = (0..columns)
                .map(|column| noise.iter().map(|byte| byte.rotate_left(column as u32).wrapping_add(column as u8)).collect())
                .collect();
            let sources: Vec<&[u8]> =
                columns.iter().enumerate().map(|(index, column)| &column[shift + index..][..len]).collect();
            for kernel in Kernel::available() {
                let mut room = vec![vec![0xaa; shift + len + 1]; rows];
                let mut outputs: Vec<&mut [u8]> = room.iter_mut().map(|room| &mut room[shift..][..len]).collect();
                multiply_with(kernel, &Coefficients::new(&matrix), &sources, &mut outputs);
                for (row, room) in matrix.iter().zip(&room) {
                    for index in 0..len {
                        let sum = row.iter().zip(&sources).fold(0, |sum, (a, source)| sum ^ product(*a, source[index]));
                        assert_eq!(room[shift + index], sum, "{kernel:?}");
                    }
                    assert_eq!(room[shift + len], 0xaa, "{kernel:?} wrote past the end");
                }
            }
        }
    }
}

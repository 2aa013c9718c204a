//! The erasure code: K data columns, M parity columns, any K of them suffice.
//!
//! The generator is ISA-L's `gf_gen_cauchy1_matrix`: the identity, then `1 / (i ^ j)` for row `i` (from K on) and column
//! `j`. That matrix is the format of every parity byte at rest and never changes.

use super::galois::{Coefficients, inverse, multiply, product};
use crate::address::ColumnIndex;

/// Square or not, row by row.
type Matrix = Vec<Vec<u8>>;

/// The code of one geometry.
pub struct Code {
    data_columns: usize,
    parity_columns: usize,
    encode: Coefficients,
}

impl Code {
    /// K and M within the bounds of a checked geometry.
    pub fn new(data_columns: u8, parity_columns: u8) -> Self {
        let (data_columns, parity_columns) = (usize::from(data_columns), usize::from(parity_columns));
        let rows: Matrix = (data_columns..data_columns + parity_columns)
            .map(|row| generator_row(data_columns, row))
            .collect();
        Self { data_columns, parity_columns, encode: Coefficients::new(&rows) }
    }

    /// Computes all parity columns of equally long parts of all data columns.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        if self.parity_columns > 0 {
            multiply(&self.encode, data, parity);
        }
    }

    /// Prepares to compute the columns `missing` (at most M) from the K columns `sources`, in that order.
    pub fn decoder(&self, sources: &[ColumnIndex], missing: &[ColumnIndex]) -> Decoder {
        assert_eq!(sources.len(), self.data_columns);
        let row = |column: &ColumnIndex| generator_row(self.data_columns, usize::from(column.0));
        let recover_data = invert(sources.iter().map(row).collect());
        let rows: Matrix = missing
            .iter()
            .map(|column| {
                let row = row(column);
                (0..self.data_columns)
                    .map(|source| {
                        row.iter()
                            .zip(&recover_data)
                            .fold(0, |sum, (factor, data)| sum ^ product(*factor, data[source]))
                    })
                    .collect()
            })
            .collect();
        Decoder(Coefficients::new(&rows))
    }
}

/// Computes one choice of missing columns from one choice of sources.
pub struct Decoder(Coefficients);

impl Decoder {
    /// `sources` and `missing` in the order in which the decoder was made; all of one length.
    pub fn decode(&self, sources: &[&[u8]], missing: &mut [&mut [u8]]) {
        multiply(&self.0, sources, missing);
    }
}

fn generator_row(data_columns: usize, row: usize) -> Vec<u8> {
    (0..data_columns)
        .map(
            |column| if row < data_columns { u8::from(row == column) } else { inverse((row ^ column) as u8) },
        )
        .collect()
}

/// Gauss and Jordan. Any K rows of the generator are independent, so the matrix has an inverse.
fn invert(mut matrix: Matrix) -> Matrix {
    let size = matrix.len();
    let mut result: Matrix =
        (0..size).map(|row| (0..size).map(|column| u8::from(row == column)).collect()).collect();
    for step in 0..size {
        let pivot = (step..size).find(|row| matrix[*row][step] != 0);
        let Some(pivot) = pivot else { unreachable!("{size} rows of a Cauchy generator are independent") };
        matrix.swap(step, pivot);
        result.swap(step, pivot);
        let scale = inverse(matrix[step][step]);
        for rows in [&mut matrix, &mut result] {
            rows[step].iter_mut().for_each(|value| *value = product(*value, scale));
        }
        for row in (0..size).filter(|row| *row != step) {
            let factor = matrix[row][step];
            if factor == 0 {
                continue;
            }
            for rows in [&mut matrix, &mut result] {
                let of_step = rows[step].clone();
                for (value, pivot) in rows[row].iter_mut().zip(of_step) {
                    *value ^= product(factor, pivot);
                }
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::checksum::crc32c;

    /// Splitmix64, as in `tests/fixtures/isal_parity.c`.
    fn column(seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut word = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        (0..512).flat_map(|_| word().to_le_bytes()).collect()
    }

    fn stripe(data_columns: u8, parity_columns: u8) -> Vec<Vec<u8>> {
        let seed = (u64::from(data_columns) << 16) + (u64::from(parity_columns) << 8);
        let data: Vec<Vec<u8>> = (0..u64::from(data_columns)).map(|index| column(seed + index)).collect();
        let mut parity = vec![vec![0; 4096]; usize::from(parity_columns)];
        Code::new(data_columns, parity_columns).encode(
            &data.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>(),
        );
        [data, parity].concat()
    }

    #[test]
    fn parity_is_what_isal_computes() {
        let mut lines = 0;
        for line in include_str!("../../tests/fixtures/isal_parity.txt").lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [k, m, index] = [0, 1, 2].map(|field| fields[field].parse::<u8>().unwrap());
            let parity = &stripe(k, m)[usize::from(k + index)];
            let hex: String = parity[..64].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, fields[4], "{k}+{m}, parity {index}");
            assert_eq!(format!("{:08x}", crc32c(parity)), fields[3], "{k}+{m}, parity {index}");
            lines += 1;
        }
        assert_eq!(lines, 16 * (1 + 2 + 3));
    }

    #[test]
    fn any_k_columns_give_back_the_rest() {
        for (k, m) in (1..=16).flat_map(|k| (1..=3).map(move |m| (k, m))) {
            let columns: Vec<Vec<u8>> =
                stripe(k, m).into_iter().map(|column| column[..64].to_vec()).collect();
            let code = Code::new(k, m);
            for lost in 1u32..1 << (k + m) {
                if lost.count_ones() > u32::from(m) {
                    continue;
                }
                let (missing, mut sources): (Vec<_>, Vec<_>) =
                    (0..k + m).map(ColumnIndex).partition(|column| lost >> column.0 & 1 == 1);
                // Which of the survivors are taken, and in which order, must not matter.
                let turn = lost as usize % sources.len();
                sources.rotate_left(turn);
                sources.truncate(usize::from(k));
                let mut found = vec![vec![0; 64]; missing.len()];
                code.decoder(&sources, &missing).decode(
                    &sources
                        .iter()
                        .map(|source| columns[usize::from(source.0)].as_slice())
                        .collect::<Vec<_>>(),
                    &mut found.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>(),
                );
                for (column, found) in missing.iter().zip(found) {
                    assert_eq!(found, columns[usize::from(column.0)], "{k}+{m} without {missing:?}");
                }
            }
        }
    }
}

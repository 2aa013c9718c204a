//! ISA-L as a rival: Debian's package, fetched and loaded when it is asked for. Nothing of it is linked.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libloading::{Library, Symbol};
use ringfort_qemu_tests::provision::unpacked;

type GenerateMatrix = unsafe extern "C" fn(matrix: *mut u8, rows: c_int, columns: c_int);
type InvertMatrix = unsafe extern "C" fn(matrix: *mut u8, inverse: *mut u8, size: c_int) -> c_int;
type InitTables =
    unsafe extern "C" fn(sources: c_int, outputs: c_int, coefficients: *mut u8, tables: *mut u8);
type EncodeData = unsafe extern "C" fn(
    length: c_int,
    sources: c_int,
    outputs: c_int,
    tables: *mut u8,
    from: *mut *mut u8,
    to: *mut *mut u8,
);
type Crc32Iscsi = unsafe extern "C" fn(bytes: *mut u8, length: c_int, initial: c_uint) -> c_uint;

/// The functions of the loaded library, which stays loaded as long as they.
pub struct IsaL {
    generate_matrix: GenerateMatrix,
    invert_matrix: InvertMatrix,
    init_tables: InitTables,
    encode_data: EncodeData,
    crc32_iscsi: Crc32Iscsi,
    /// The file's name, which ends in its version.
    pub version: String,
    _library: Library,
}

impl IsaL {
    /// Fetches the package, once, and loads the library.
    pub fn load() -> Result<IsaL> {
        let root = unpacked("isal", &["libisal2"])?;
        let path = root.join("usr/lib/x86_64-linux-gnu/libisal.so.2");
        let file = path.canonicalize().with_context(|| format!("finding {}", path.display()))?;
        Self::from_file(&file).with_context(|| format!("loading {}", file.display()))
    }

    fn from_file(file: &Path) -> Result<IsaL> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let version = name.trim_start_matches("libisal.so.").to_owned();
        // SAFETY: ISA-L's library has no initialisers but the choice of functions by processor; the types are those of its
        // headers erasure_code.h and crc.h, unchanged through all 2.x.
        unsafe {
            let library = Library::new(file)?;
            Ok(IsaL {
                generate_matrix: symbol(&library, b"gf_gen_cauchy1_matrix\0")?,
                invert_matrix: symbol(&library, b"gf_invert_matrix\0")?,
                init_tables: symbol(&library, b"ec_init_tables\0")?,
                encode_data: symbol(&library, b"ec_encode_data\0")?,
                crc32_iscsi: symbol(&library, b"crc32_iscsi\0")?,
                version,
                _library: library,
            })
        }
    }

    /// Prepares to compute the parity columns from the data columns.
    pub fn encoder(&self, data_columns: usize, parity_columns: usize) -> Product<'_> {
        let matrix = self.generator(data_columns, parity_columns);
        self.product(data_columns, &matrix[data_columns * data_columns..])
    }

    /// Prepares to compute the data columns `missing` from the columns `sources`, of which there are as many as data columns.
    pub fn decoder(
        &self,
        data_columns: usize,
        parity_columns: usize,
        sources: &[usize],
        missing: &[usize],
    ) -> Result<Product<'_>> {
        assert_eq!(sources.len(), data_columns);
        assert!(missing.iter().all(|column| *column < data_columns));
        let matrix = self.generator(data_columns, parity_columns);
        let row = |column: usize| &matrix[column * data_columns..][..data_columns];
        let mut remaining: Vec<u8> = sources.iter().flat_map(|column| row(*column)).copied().collect();
        let mut inverse = vec![0; data_columns * data_columns];
        // SAFETY: both matrices hold `data_columns` rows of as many bytes.
        let singular =
            unsafe { (self.invert_matrix)(remaining.as_mut_ptr(), inverse.as_mut_ptr(), int(data_columns)) };
        ensure!(singular == 0, "ISA-L finds the matrix of columns {sources:?} singular");
        let rows: Vec<u8> = missing
            .iter()
            .flat_map(|column| &inverse[column * data_columns..][..data_columns])
            .copied()
            .collect();
        Ok(self.product(data_columns, &rows))
    }

    /// CRC-32C as everybody else counts it.
    pub fn crc32c(&self, bytes: &[u8]) -> u32 {
        // SAFETY: the function reads `bytes` and writes nothing, though its type does not say so.
        !unsafe { (self.crc32_iscsi)(bytes.as_ptr().cast_mut(), int(bytes.len()), !0) }
    }

    fn generator(&self, data_columns: usize, parity_columns: usize) -> Vec<u8> {
        let rows = data_columns + parity_columns;
        let mut matrix = vec![0; rows * data_columns];
        // SAFETY: the matrix holds `rows` rows of `data_columns` bytes.
        unsafe { (self.generate_matrix)(matrix.as_mut_ptr(), int(rows), int(data_columns)) };
        matrix
    }

    fn product(&self, sources: usize, rows: &[u8]) -> Product<'_> {
        let outputs = rows.len() / sources;
        let mut coefficients = rows.to_vec();
        // 32 bytes a coefficient, as the header says.
        let mut tables = vec![0; 32 * rows.len()];
        // SAFETY: there are `outputs` rows of `sources` coefficients, and room for a table of each.
        unsafe {
            (self.init_tables)(int(sources), int(outputs), coefficients.as_mut_ptr(), tables.as_mut_ptr());
        }
        Product { library: self, sources, outputs, tables }
    }
}

/// A matrix with ISA-L's tables for it.
pub struct Product<'a> {
    library: &'a IsaL,
    sources: usize,
    outputs: usize,
    tables: Vec<u8>,
}

impl Product<'_> {
    /// Computes the outputs from the sources; all of one length.
    pub fn compute(&mut self, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        const COLUMNS_MAX: usize = 32;
        assert_eq!((sources.len(), outputs.len()), (self.sources, self.outputs));
        assert!(self.sources <= COLUMNS_MAX && self.outputs <= COLUMNS_MAX);
        let length = outputs.first().map_or(0, |output| output.len());
        assert!(sources.iter().all(|source| source.len() == length));
        assert!(outputs.iter().all(|output| output.len() == length));
        let mut from = [std::ptr::null_mut(); COLUMNS_MAX];
        let mut to = [std::ptr::null_mut(); COLUMNS_MAX];
        for (pointer, source) in from.iter_mut().zip(sources) {
            *pointer = source.as_ptr().cast_mut();
        }
        for (pointer, output) in to.iter_mut().zip(outputs) {
            *pointer = output.as_mut_ptr();
        }
        // SAFETY: the pointers come from slices of `length` bytes, the outputs' exclusively borrowed; sources are only read;
        // the tables are of this number of sources and outputs.
        unsafe {
            (self.library.encode_data)(
                int(length),
                int(self.sources),
                int(self.outputs),
                self.tables.as_mut_ptr(),
                from.as_mut_ptr(),
                to.as_mut_ptr(),
            );
        }
    }
}

/// # Safety
/// `T` is the type of the function `name`, and is not called after the library is gone.
unsafe fn symbol<T: Copy>(library: &Library, name: &[u8]) -> Result<T> {
    // SAFETY: the caller's word.
    let symbol: Symbol<'_, T> = unsafe { library.get(name) }?;
    Ok(*symbol)
}

fn int(value: usize) -> c_int {
    assert!(value <= 1 << 30, "{value} is beyond what ISA-L counts");
    value as c_int
}

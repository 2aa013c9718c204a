//! The border to C: nulls, panics and error numbers.
//!
//! Whoever calls keeps to `ringfort.h`: handles are live and of their type, strings end with a zero, and buffers are as long as is said.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ringfort_guest::{Error, File, Place, Volume};

/// A call that failed: its error number, and a sentence.
pub struct Failure {
    errno: c_int,
    text: String,
}

impl Failure {
    pub fn new(errno: c_int, text: impl Into<String>) -> Self {
        Self { errno, text: text.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { errno: error.errno(), text: error.to_string() }
    }
}

pub type Result<T> = std::result::Result<T, Failure>;

thread_local! {
    /// About the last call of this thread that failed.
    static SENTENCE: RefCell<CString> = RefCell::default();
}

/// Keeps the sentence, and returns the number.
fn fail(Failure { errno, text }: Failure) -> i64 {
    let bytes: Vec<u8> = text.into_bytes().into_iter().filter(|byte| *byte != 0).collect();
    // A thread that is ending keeps none.
    let _ = SENTENCE.try_with(|sentence| *sentence.borrow_mut() = CString::new(bytes).unwrap_or_default());
    // An error without a number is one all the same.
    -i64::from(if errno > 0 { errno } else { libc::EIO })
}

/// A call that returns a count. No panic leaves it.
pub fn count(call: impl FnOnce() -> Result<u64>) -> i64 {
    let ended = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        Err(Failure::new(libc::EIO, "the library panicked: a fault of ringfort, please report it"))
    });
    match ended.and_then(|count| {
        i64::try_from(count)
            .map_err(|_| Failure::new(libc::EOVERFLOW, format!("{count} is more than can be told")))
    }) {
        Ok(count) => count,
        Err(failure) => fail(failure),
    }
}

/// A call that returns 0, or a small number.
pub fn code(call: impl FnOnce() -> Result<u64>) -> c_int {
    c_int::try_from(count(call)).unwrap_or(-libc::EOVERFLOW)
}

/// An argument that may not be NULL.
pub fn given<T>(argument: Option<T>, name: &str) -> Result<T> {
    argument.ok_or_else(|| Failure::new(libc::EFAULT, format!("{name} is NULL")))
}

/// A string of the caller's.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Text<'a>(*const c_char, PhantomData<&'a c_char>);

impl<'a> Text<'a> {
    /// None for NULL.
    pub fn optional(self) -> Option<&'a CStr> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: made by C alone; it is not NULL, and the caller says that it ends with a zero and stays during the call.
        Some(unsafe { CStr::from_ptr(self.0) })
    }

    pub fn bytes(self, name: &str) -> Result<&'a [u8]> {
        given(self.optional(), name).map(CStr::to_bytes)
    }
}

/// Bytes of the caller's, to read.
#[repr(transparent)]
pub struct Bytes<'a>(*const c_void, PhantomData<&'a c_void>);

impl<'a> Bytes<'a> {
    pub fn of(self, len_bytes: usize) -> Result<&'a [u8]> {
        check(self.0.is_null(), len_bytes)?;
        if len_bytes == 0 {
            return Ok(&[]);
        }
        // SAFETY: made by C alone; it is not NULL, and the caller says that so many bytes are there, which it leaves alone during the call.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast(), len_bytes) })
    }
}

/// A buffer of the caller's, to fill.
#[repr(transparent)]
pub struct Buffer<'a>(*mut c_void, PhantomData<&'a mut c_void>);

impl<'a> Buffer<'a> {
    pub fn of(self, len_bytes: usize) -> Result<&'a mut [u8]> {
        check(self.0.is_null(), len_bytes)?;
        if len_bytes == 0 {
            return Ok(&mut []);
        }
        // SAFETY: made by C alone; it is not NULL, and the caller says that so many bytes are there, which nobody else uses during the call.
        // They are only written; what C left in them is some byte.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.cast(), len_bytes) })
    }
}

/// Bytes of the caller's, which a call reads or fills.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Memory<'a>(*mut c_void, PhantomData<&'a c_void>);

impl<'a> Memory<'a> {
    pub fn to_read(self, len_bytes: usize) -> Result<&'a [u8]> {
        Bytes(self.0, PhantomData).of(len_bytes)
    }

    pub fn to_fill(self, len_bytes: usize) -> Result<Buffer<'a>> {
        check(self.0.is_null(), len_bytes)?;
        Ok(Buffer(self.0, PhantomData))
    }
}

/// Structures of the caller's, one behind the other.
#[repr(transparent)]
pub struct List<'a, T>(*mut T, PhantomData<&'a mut T>);

impl<'a, T> List<'a, T> {
    pub fn of(self, count: usize) -> Result<&'a mut [T]> {
        check(self.0.is_null(), count.saturating_mul(size_of::<T>()))?;
        if count == 0 {
            return Ok(&mut []);
        }
        // SAFETY: made by C alone; it is not NULL, and the caller says that so many structures are there, filled and aligned as its compiler does, which nobody
        // else uses during the call.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0, count) })
    }
}

/// Structures of the caller's that are only read.
#[repr(transparent)]
pub struct ReadList<'a, T>(*const T, PhantomData<&'a T>);

impl<'a, T> ReadList<'a, T> {
    pub fn of(self, count: usize) -> Result<&'a [T]> {
        check(self.0.is_null(), count.saturating_mul(size_of::<T>()))?;
        if count == 0 {
            return Ok(&[]);
        }
        // SAFETY: as for `List`, and nobody changes them during the call.
        Ok(unsafe { std::slice::from_raw_parts(self.0, count) })
    }
}

fn check(null: bool, len_bytes: usize) -> Result<()> {
    if null && len_bytes > 0 {
        return Err(Failure::new(libc::EFAULT, format!("{len_bytes} bytes at NULL")));
    }
    if len_bytes > isize::MAX as usize {
        return Err(Failure::new(libc::EINVAL, format!("{len_bytes} bytes are more than a process has")));
    }
    Ok(())
}

/// Where a result goes.
pub type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

/// A file of the caller's that a path begins at; NULL is the root.
pub type At<'a> = Option<&'a File>;

/// What `at` and `path` lead to.
pub fn place<'a>(at: At<'a>, path: Text<'a>, follow: bool) -> Result<Place<'a>> {
    let path = path.bytes("the path")?;
    let place = match at {
        Some(file) => file.at(path),
        None => Place::from(path),
    };
    Ok(if follow { place } else { place.no_follow() })
}

pub fn connected(volume: Option<&Volume>) -> Result<&Volume> {
    given(volume, "the volume")
}

/// See `ringfort.h`.
#[unsafe(no_mangle)]
pub extern "C" fn ringfort_error() -> *const c_char {
    SENTENCE.try_with(|sentence| sentence.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence() -> String {
        let text = Text(ringfort_error(), PhantomData);
        String::from_utf8(text.bytes("it").map_err(|failure| failure.text).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn failures_are_negative_numbers_with_a_sentence() {
        assert_eq!(code(|| Err(Failure::new(libc::ENOENT, "no \0 such file"))), -libc::ENOENT);
        assert_eq!(sentence(), "no  such file");
        assert_eq!(code(|| Ok(7)), 7);
        assert_eq!(sentence(), "no  such file", "success leaves it");
        assert_eq!(code(|| Err(Failure::new(0, "without a number"))), -libc::EIO);
        assert_eq!(count(|| Ok(u64::MAX)), -i64::from(libc::EOVERFLOW));
    }

    #[test]
    fn a_panic_ends_at_the_border() {
        assert_eq!(count(|| panic!("a test of panics")), -i64::from(libc::EIO));
        assert!(sentence().contains("fault of ringfort"));
    }

    #[test]
    fn nulls_are_errors_where_something_is_needed() {
        let null = || Bytes(std::ptr::null(), PhantomData);
        assert!(null().of(0).is_ok_and(<[u8]>::is_empty));
        assert!(null().of(1).is_err_and(|failure| failure.errno == libc::EFAULT));
        let byte = Bytes((&raw const *c"").cast(), PhantomData);
        assert!(byte.of(usize::MAX).is_err_and(|failure| failure.errno == libc::EINVAL));
        let none = Text(std::ptr::null(), PhantomData);
        assert!(none.bytes("the path").is_err_and(|failure| failure.text == "the path is NULL"));
    }
}

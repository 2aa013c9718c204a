use std::io;

/// What kind of failure, and therefore what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The path does not exist.
    NotFound,
    /// The path exists and may not be overwritten.
    Exists,
    /// Another process holds the component.
    Busy,
    /// Permissions forbid it.
    Denied,
    /// The device failed the request, or timed out: expel the component.
    Failed,
    /// The file system that holds the component has no room for it.
    NoSpace,
    /// The request leaves the device, or is not aligned: a fault of the caller.
    OutOfRange,
}

/// A failed engine operation: what was tried, on what, and what was found.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} {place}: {found}")]
pub struct EngineError {
    pub kind: ErrorKind,
    /// What was tried: `"open component"`, `"read 4096 bytes at offset 8192 of"`.
    pub operation: String,
    /// Path or device name.
    pub place: String,
    /// What was found instead.
    pub found: String,
}

impl EngineError {
    pub fn new(
        kind: ErrorKind,
        operation: impl Into<String>,
        place: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self { kind, operation: operation.into(), place: place.into(), found: found.into() }
    }

    /// Classifies an operating system error.
    pub fn from_io(operation: impl Into<String>, place: impl Into<String>, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                ErrorKind::NoSpace
            }
            _ => ErrorKind::Failed,
        };
        Self::new(kind, operation, place, error.to_string())
    }
}

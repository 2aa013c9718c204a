use ringfort_engine::error::EngineError;

/// What the caller can do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Nothing is there.
    NotFound,
    /// Something is there already.
    Exists,
    /// Somebody else holds it.
    Busy,
    /// No room: data, log or metadata.
    NoSpace,
    /// Bytes are wrong on every copy.
    Damaged,
    /// Too few components are left.
    Unavailable,
    /// A device failed.
    Device,
    /// The request makes no sense.
    Invalid,
    /// Written by a version that this one does not know.
    Incompatible,
}

/// A failed store operation.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} {place}: {found}{}{}",
    if .expected.is_empty() { String::new() } else { format!(" (expected {})", .expected) },
    if .advice.is_empty() { String::new() } else { format!("; {}", .advice) })]
pub struct StoreError {
    pub kind: ErrorKind,
    /// What was tried: `"open volume"`, `"read block 7 of object 3"`.
    pub operation: Box<str>,
    /// On what: path, component, address.
    pub place: Box<str>,
    /// What was expected; empty where that is plain.
    pub expected: Box<str>,
    /// What was found.
    pub found: Box<str>,
    /// What would help; empty where nothing is known to.
    pub advice: Box<str>,
    #[source]
    pub source: Option<Box<EngineError>>,
}

impl StoreError {
    pub fn new(
        kind: ErrorKind,
        operation: impl Into<Box<str>>,
        place: impl Into<Box<str>>,
        found: impl Into<Box<str>>,
    ) -> Self {
        Self {
            kind,
            operation: operation.into(),
            place: place.into(),
            expected: Box::default(),
            found: found.into(),
            advice: Box::default(),
            source: None,
        }
    }

    pub fn expected(mut self, expected: impl Into<Box<str>>) -> Self {
        self.expected = expected.into();
        self
    }

    pub fn advice(mut self, advice: impl Into<Box<str>>) -> Self {
        self.advice = advice.into();
        self
    }
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> Self {
        use ringfort_engine::error::ErrorKind as Engine;
        let kind = match error.kind {
            Engine::NotFound => ErrorKind::NotFound,
            Engine::Exists => ErrorKind::Exists,
            Engine::Busy => ErrorKind::Busy,
            Engine::NoSpace => ErrorKind::NoSpace,
            Engine::OutOfRange => ErrorKind::Invalid,
            Engine::Denied | Engine::Failed => ErrorKind::Device,
        };
        let mut converted =
            Self::new(kind, error.operation.clone(), error.place.clone(), error.found.clone());
        converted.source = Some(Box::new(error));
        converted
    }
}

//! The envelope of control messages.
//!
//! Control messages travel on the connection beside the rings (vsock, or a Unix socket). Each is an [`Envelope`]
//! followed by its body. The receiver copies the envelope, checks it with [`Envelope::check`], and only then reads a body
//! of the length that the envelope states.

use zerocopy::little_endian::{U16, U32};

use crate::layout::record;
use crate::version::Version;

/// Begins every control message: `RfCt`.
pub const MAGIC: [u8; 4] = *b"RfCt";

/// The longest body, in bytes: what either side buffers for the other at most.
pub const BODY_BYTES_MAX: u32 = 64 << 10;

record! {
    /// What precedes the body of a control message.
    pub struct Envelope: 16 {
        pub magic: [u8; 4],
        /// The version that kind and body belong to.
        pub version: U16,
        /// What the body is.
        pub kind: U16,
        /// Length of the body.
        pub body_bytes: U32,
        /// Zero.
        pub reserved: U32,
    }
}

/// Why an envelope was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The peer speaks something else.
    #[error("control message begins with {0:02x?}, expected {MAGIC:02x?}")]
    Magic([u8; 4]),
    /// Newer than this side knows.
    #[error("control message of version {}; this side knows {}", .0.0, Version::LATEST.0)]
    Version(Version),
    /// Longer than [`BODY_BYTES_MAX`].
    #[error("control message with a body of {0} bytes; at most {BODY_BYTES_MAX} are taken")]
    BodyBytes(u32),
    /// Reserved space is not zero.
    #[error("control message with reserved bytes {0:#x}, expected 0")]
    Reserved(u32),
}

impl Envelope {
    pub fn new(version: Version, kind: u16, body_bytes: u32) -> Self {
        assert!(body_bytes <= BODY_BYTES_MAX, "control message body of {body_bytes} bytes");
        Self {
            magic: MAGIC,
            version: U16::new(version.0),
            kind: U16::new(kind),
            body_bytes: U32::new(body_bytes),
            reserved: U32::ZERO,
        }
    }

    /// Checks an envelope that came from the other side. Whether its kind is known is for the caller to say.
    pub fn check(&self) -> Result<(), EnvelopeError> {
        if self.magic != MAGIC {
            return Err(EnvelopeError::Magic(self.magic));
        }
        let version = Version(self.version.get());
        if version > Version::LATEST {
            return Err(EnvelopeError::Version(version));
        }
        if self.body_bytes.get() > BODY_BYTES_MAX {
            return Err(EnvelopeError::BodyBytes(self.body_bytes.get()));
        }
        if self.reserved != U32::ZERO {
            return Err(EnvelopeError::Reserved(self.reserved.get()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn an_envelope_has_the_bytes_of_its_golden_file() {
        let envelope = Envelope::new(Version::ENVELOPE, 0x0102, 0x0304);
        assert_eq!(envelope.as_bytes(), include_bytes!("../../tests/golden/envelope.bin"));
        assert_eq!(envelope.check(), Ok(()));
    }

    #[test]
    fn an_envelope_from_outside_is_refused_with_what_is_wrong() {
        let good = Envelope::new(Version::LATEST, 1, 8);
        let cases = [
            (Envelope { magic: *b"HTTP", ..good }, EnvelopeError::Magic(*b"HTTP")),
            (Envelope { version: U16::new(77), ..good }, EnvelopeError::Version(Version(77))),
            (Envelope { body_bytes: U32::new(u32::MAX), ..good }, EnvelopeError::BodyBytes(u32::MAX)),
            (Envelope { reserved: U32::new(1), ..good }, EnvelopeError::Reserved(1)),
        ];
        for (envelope, error) in cases {
            assert_eq!(envelope.check(), Err(error), "{error}");
        }
    }
}

//! What is said over the admin socket: one JSON object a line, each with the version that it is written in.

use serde::{Deserialize, Serialize};

use crate::report::{Status, ViewList};

pub const VERSION: u32 = 1;

/// The longest request line, in bytes. Requests are short; a longer one is a mistake or an attack.
pub const REQUEST_BYTES_MAX: usize = 4 << 10;

/// The longest response line, in bytes: what a client buffers at most.
pub const RESPONSE_BYTES_MAX: usize = 32 << 20;

/// A line from client to server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub version: u32,
    pub request: RequestKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    Status,
    /// Everything that the log holds is to be brought to its place.
    Checkpoint,
    Views(ViewRequest),
}

/// What is asked of snapshots and clones. All are of the volume itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewRequest {
    List,
    TakeSnapshot { name: String },
    RemoveSnapshot { name: String },
    MakeClone { snapshot: String, name: String },
    RemoveClone { name: String },
}

/// A line from server to client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    pub version: u32,
    #[serde(flatten)]
    pub answer: Answer,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Status(Box<Status>),
    /// The log is empty but for what has come since.
    Checkpointed,
    Views(ViewList),
    /// What was asked for has been done, and is durable.
    Done,
    /// Why there is no other answer, for a person to read.
    Error(String),
}

impl Request {
    pub fn new(request: RequestKind) -> Self {
        Self { version: VERSION, request }
    }

    /// Checks a line from a client; the error is for the client to read.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let wrong = |error: serde_json::Error| format!("the request is not understood: {error}");
        let Versioned { version } = serde_json::from_slice(line).map_err(wrong)?;
        if version != VERSION {
            return Err(format!("request of version {version}; this server speaks version {VERSION}"));
        }
        serde_json::from_slice(line).map_err(wrong)
    }
}

impl Response {
    pub fn new(answer: Answer) -> Self {
        Self { version: VERSION, answer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_short_json_object() {
        let request = Request::new(RequestKind::Status);
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"version":1,"request":"status"}"#);
        assert_eq!(Request::parse(text.as_bytes()), Ok(request));
        let request = Request::parse(br#"{"version":1,"request":"checkpoint"}"#);
        assert_eq!(request, Ok(Request::new(RequestKind::Checkpoint)));
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_reason() {
        for (line, reason) in [
            ("", "not understood"),
            ("{}", "version"),
            (r#"{"version":9,"request":{"melt":1}}"#, "version 9"),
            (r#"{"version":1,"request":"melt"}"#, "melt"),
            ("\u{1}\u{2}", "not understood"),
        ] {
            let error = Request::parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}

//! As much of HTTP/1.1 as a scraper speaks: a GET or HEAD for one page, then the end.

use super::exposition::CONTENT_TYPE;

/// The longest head of a request that is read. Scrapers send a few hundred bytes.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Page,
    /// What the page's head would be.
    HeadOnly,
}

/// Why a request gets no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    BadRequest,
    NotFound,
    MethodNotAllowed,
    TooLong,
    /// The volume gives no report: it is being closed, or hangs.
    Unavailable,
}

/// Where a request's head ends, if it has.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    let ends =
        |end: &[u8]| bytes.windows(end.len()).position(|window| window == end).map(|at| at + end.len());
    match (ends(b"\r\n\r\n"), ends(b"\n\n")) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Reads the request line; headers change nothing.
pub fn parse(head: &[u8]) -> Result<Wanted, Refusal> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| Refusal::BadRequest)?;
    let mut words = line.trim_end_matches('\r').split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::BadRequest);
    };
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") || !target.starts_with('/') {
        return Err(Refusal::BadRequest);
    }
    let wanted = match method {
        "GET" => Wanted::Page,
        "HEAD" => Wanted::HeadOnly,
        _ if method.bytes().all(|byte| byte.is_ascii_uppercase()) => return Err(Refusal::MethodNotAllowed),
        _ => return Err(Refusal::BadRequest),
    };
    // A query selects nothing here.
    match target.split('?').next() {
        Some("/metrics") => Ok(wanted),
        _ => Err(Refusal::NotFound),
    }
}

impl Refusal {
    fn status(self) -> &'static str {
        match self {
            Refusal::BadRequest => "400 Bad Request",
            Refusal::NotFound => "404 Not Found",
            Refusal::MethodNotAllowed => "405 Method Not Allowed",
            Refusal::TooLong => "431 Request Header Fields Too Large",
            Refusal::Unavailable => "503 Service Unavailable",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Refusal::BadRequest => "this is not understood as HTTP/1.1; ask for GET /metrics\n",
            Refusal::NotFound => "only /metrics is here\n",
            Refusal::MethodNotAllowed => "only GET and HEAD are answered\n",
            Refusal::TooLong => "the request's head is too long\n",
            Refusal::Unavailable => "the volume gives no report: it is being closed, or hangs; see the log\n",
        }
    }

    pub fn response(self) -> Vec<u8> {
        let allow = if self == Refusal::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
        response(self.status(), "text/plain; charset=utf-8", allow, self.advice(), Wanted::Page)
    }
}

/// A page of metrics.
pub fn page_response(page: &str, wanted: Wanted) -> Vec<u8> {
    response("200 OK", CONTENT_TYPE, "", page, wanted)
}

fn response(status: &str, content_type: &str, more: &str, body: &str, wanted: Wanted) -> Vec<u8> {
    let len_bytes = body.len();
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len_bytes}\r\n{more}Connection: close\r\n\r\n"
    );
    if wanted == Wanted::Page {
        text.push_str(body);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_get_or_head_of_the_page_is_understood() {
        for (head, wanted) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Wanted::Page),
            ("GET /metrics?name[]=a HTTP/1.0\n\n", Wanted::Page),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Wanted::HeadOnly),
        ] {
            assert_eq!(head_end(head.as_bytes()), Some(head.len()), "{head:?}");
            assert_eq!(parse(head.as_bytes()), Ok(wanted), "{head:?}");
        }
    }

    #[test]
    fn all_else_is_refused_by_its_kind() {
        for (head, refusal) in [
            ("GET / HTTP/1.1\r\n\r\n", Refusal::NotFound),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", Refusal::NotFound),
            ("POST /metrics HTTP/1.1\r\n\r\n", Refusal::MethodNotAllowed),
            ("GET /metrics\r\n\r\n", Refusal::BadRequest),
            ("GET /metrics HTTP/2.0\r\n\r\n", Refusal::BadRequest),
            ("GET  /metrics HTTP/1.1\r\n\r\n", Refusal::BadRequest),
            ("GET metrics HTTP/1.1\r\n\r\n", Refusal::BadRequest),
            ("get /metrics HTTP/1.1\r\n\r\n", Refusal::BadRequest),
            ("\r\n\r\n", Refusal::BadRequest),
            ("\u{1}\u{2}\n\n", Refusal::BadRequest),
        ] {
            assert_eq!(parse(head.as_bytes()), Err(refusal), "{head:?}");
        }
        assert_eq!(parse(&[0xff, 0xfe, b'\n', b'\n']), Err(Refusal::BadRequest));
        assert_eq!(head_end(b"GET /metrics HTTP/1.1\r\nHost: x\r\n"), None);
    }

    #[test]
    fn a_head_has_the_length_of_the_page_and_not_the_page() {
        let text = String::from_utf8(page_response("abc\n", Wanted::HeadOnly)).unwrap();
        assert!(text.contains("Content-Length: 4\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n"), "{text}");
    }
}

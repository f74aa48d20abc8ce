//! The fields of a message as a plain map, without allocations for names.
//!
//! Must not know: what any field means. Pingora stores the spelling of each name beside the fields, so every inserted field
//! costs two allocations and two more hashes. Here the fields are taken out as a map, and names are written in lower case,
//! as in HTTP/2 and as HTTP allows.

use bytes::{BufMut as _, BytesMut};
use http::{HeaderMap, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{ErrorType, OrErr as _};
use std::fmt::{self, Write as _};
use std::net::IpAddr;

/// Drops the spelling of the request's names, so that copies of it are cheaper, too. Its target must be one that its URI
/// reproduces, as all forwarded targets are.
pub(in crate::proxy) fn forget_case(request: &mut RequestHeader) {
    if request.has_case() {
        edit_request(request, |_| ());
    }
}

/// Calls `edit` with the fields of `request`. The same holds for its target.
pub(in crate::proxy) fn edit_request<T>(
    request: &mut RequestHeader,
    edit: impl FnOnce(&mut HeaderMap) -> T,
) -> T {
    let empty = RequestHeader::from(http::Request::new(()).into_parts().0);
    let mut parts = http::request::Parts::from(std::mem::replace(request, empty));
    let done = edit(&mut parts.headers);
    *request = RequestHeader::from(parts);
    done
}

/// Calls `edit` with the fields of `response`.
pub(in crate::proxy) fn edit_response<T>(
    response: &mut ResponseHeader,
    edit: impl FnOnce(&mut HeaderMap) -> pingora::Result<T>,
) -> pingora::Result<T> {
    let canonical = response.status.canonical_reason();
    let reason = response.get_reason_phrase().filter(|r| Some(*r) != canonical).map(str::to_owned);
    let empty = ResponseHeader::from(http::Response::new(()).into_parts().0);
    let mut parts = http::response::Parts::from(std::mem::replace(response, empty));
    let done = edit(&mut parts.headers)?;
    *response = ResponseHeader::from(parts);
    if reason.is_some() {
        response.set_reason_phrase(reason.as_deref())?;
    }
    Ok(done)
}

/// Values written one after the other into one allocation.
pub(in crate::proxy) struct ValueBuffer(BytesMut);

impl ValueBuffer {
    /// A buffer with room for `bytes` of all values together; it grows when needed.
    pub(in crate::proxy) fn new(bytes: usize) -> Self {
        Self(BytesMut::with_capacity(bytes))
    }

    /// Appends to the current value.
    pub(in crate::proxy) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Appends bytes.
    pub(in crate::proxy) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.put_slice(bytes);
        self
    }

    /// Appends a number, in decimal.
    pub(in crate::proxy) fn number(&mut self, number: u64) -> &mut Self {
        self.text(itoa::Buffer::new().format(number))
    }

    /// Appends an address.
    pub(in crate::proxy) fn address(&mut self, address: IpAddr) -> &mut Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets().map(u64::from);
                self.number(a).text(".").number(b).text(".").number(c).text(".").number(d)
            }
            IpAddr::V6(v6) => {
                // Writing to memory cannot fail.
                write!(self, "{v6}").ok();
                self
            }
        }
    }

    /// Whether the current value is empty.
    pub(in crate::proxy) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ends the current value.
    pub(in crate::proxy) fn take(&mut self) -> pingora::Result<HeaderValue> {
        HeaderValue::from_maybe_shared(self.0.split().freeze())
            .or_err(ErrorType::InvalidHTTPHeader, "invalid header field value")
    }
}

impl fmt::Write for ValueBuffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_built_in_one_buffer_stay_separate() {
        let mut values = ValueBuffer::new(4);
        let first = values.text("a").number(10).take().expect("a value");
        let second = values.text("b").take().expect("a value");
        assert!(values.is_empty());
        let v4 = values.address([10, 0, 0, 255].into()).take().expect("a value");
        let mapped: IpAddr = "::ffff:1.2.3.4".parse().expect("an address");
        let mapped = values.address(mapped).take().expect("a value");
        let v6 = values.address("2001:db8::1".parse().expect("an address")).take().expect("a value");
        assert_eq!(
            [&first, &second, &v4, &mapped, &v6],
            ["a10", "b", "10.0.0.255", "1.2.3.4", "2001:db8::1"]
        );
        assert!(values.text("line\nbreak").take().is_err());
    }

    #[test]
    fn editing_fields_keeps_the_rest_of_a_message() {
        let mut request = RequestHeader::build("POST", b"/a%20b?c=d", None).expect("a request");
        request.append_header("X-Own", "1").expect("a field");
        edit_request(&mut request, |fields| fields.insert("x-more", HeaderValue::from_static("2")));
        assert_eq!((request.method.as_str(), request.raw_path()), ("POST", &b"/a%20b?c=d"[..]));
        assert_eq!(
            (&request.headers["x-own"], &request.headers["x-more"]),
            (&"1".parse().expect("a value"), &"2".parse().expect("a value"))
        );
        let mut response = ResponseHeader::build(200, None).expect("a response");
        response.set_reason_phrase(Some("Fine")).expect("a phrase");
        edit_response(&mut response, |_| Ok(())).expect("an edit");
        assert_eq!((response.status.as_u16(), response.get_reason_phrase()), (200, Some("Fine")));
    }
}

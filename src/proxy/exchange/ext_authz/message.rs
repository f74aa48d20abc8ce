//! The messages of Envoy's `envoy.service.auth.v3.Authorization`, as far as they are read and written, and how gRPC frames one.
//! The numbers of the fields are those of Envoy's API, version 3; unknown fields are skipped.
//!
//! *Invariant:* what holds header fields of a client, which may be secrets, has no `Debug`.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;
use std::collections::BTreeMap;

/// What stands before a message: whether it is compressed, and its length.
pub(super) const PREFIX: usize = 5;

/// Why a message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadFrame {
    /// It is compressed, which was not offered.
    Compressed,
    /// It is not one whole message.
    Length,
}

/// The message in the body of a call.
pub(super) fn unframed(body: &Bytes) -> Result<Bytes, BadFrame> {
    let Some((prefix, message)) = body.split_first_chunk::<PREFIX>() else { return Err(BadFrame::Length) };
    let [flag, length @ ..] = *prefix;
    match flag {
        0 if usize::try_from(u32::from_be_bytes(length)) == Ok(message.len()) => Ok(body.slice(PREFIX..)),
        1 => Err(BadFrame::Compressed),
        _ => Err(BadFrame::Length),
    }
}

/// The body of an answer with this message.
pub(super) fn framed(message: &CheckResponse) -> Bytes {
    let length = message.encoded_len();
    let mut body = BytesMut::with_capacity(PREFIX + length);
    body.put_u8(0);
    body.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer grows, so this cannot fail.
    message.encode(&mut body).ok();
    body.freeze()
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) attributes: Option<AttributeContext>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct AttributeContext {
    #[prost(message, optional, tag = "1")]
    pub(super) source: Option<Peer>,
    #[prost(message, optional, tag = "4")]
    pub(super) request: Option<AttributeRequest>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Peer {
    #[prost(message, optional, tag = "1")]
    pub(super) address: Option<Address>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Address {
    /// One of several kinds; a pipe has no address of a client.
    #[prost(message, optional, tag = "1")]
    pub(super) socket_address: Option<SocketAddress>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SocketAddress {
    #[prost(string, tag = "2")]
    pub(super) address: String,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct AttributeRequest {
    #[prost(message, optional, tag = "2")]
    pub(super) http: Option<HttpRequest>,
}

/// The request of Envoy's client.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct HttpRequest {
    #[prost(string, tag = "2")]
    pub(super) method: String,
    /// Fields of one name are joined.
    #[prost(btree_map = "string, string", tag = "3")]
    pub(super) headers: BTreeMap<String, String>,
    /// With the query.
    #[prost(string, tag = "4")]
    pub(super) path: String,
    #[prost(string, tag = "5")]
    pub(super) host: String,
    #[prost(string, tag = "6")]
    pub(super) scheme: String,
    #[prost(string, tag = "11")]
    pub(super) body: String,
    #[prost(bytes = "bytes", tag = "12")]
    pub(super) raw_body: Bytes,
    /// The same as `headers`, as the client sent them; sent instead with `encode_raw_headers`.
    #[prost(message, optional, tag = "13")]
    pub(super) header_map: Option<HeaderMap>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct HeaderMap {
    #[prost(message, repeated, tag = "1")]
    pub(super) headers: Vec<HeaderValue>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct HeaderValue {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) raw_value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    /// This or the next.
    #[prost(message, optional, tag = "2")]
    pub(super) denied_response: Option<DeniedHttpResponse>,
    #[prost(message, optional, tag = "3")]
    pub(super) ok_response: Option<OkHttpResponse>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    /// A status of gRPC: the request passes with 0 only.
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

/// What Envoy answers its client.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct DeniedHttpResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<HttpStatus>,
    #[prost(message, repeated, tag = "2")]
    pub(super) headers: Vec<HeaderValueOption>,
    #[prost(string, tag = "3")]
    pub(super) body: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HttpStatus {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
}

/// What Envoy changes in the request, and adds to the response of the backend.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct OkHttpResponse {
    #[prost(message, repeated, tag = "2")]
    pub(super) headers: Vec<HeaderValueOption>,
    /// Removed after `headers` are set.
    #[prost(string, repeated, tag = "5")]
    pub(super) headers_to_remove: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    pub(super) response_headers_to_add: Vec<HeaderValueOption>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct HeaderValueOption {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<HeaderValue>,
    /// Whether it is added to fields of its name, and does not replace them. All versions of Envoy know it.
    #[prost(message, optional, tag = "2")]
    pub(super) append: Option<BoolValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct BoolValue {
    #[prost(bool, tag = "1")]
    pub(super) value: bool,
}

impl HttpRequest {
    /// The header fields, in the order in which they are stated.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        let raw = self.header_map.iter().flat_map(|map| &map.headers).map(HeaderValue::line);
        let joined = self.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        joined.filter(|_| self.header_map.is_none()).chain(raw)
    }

    /// The part of the body that was sent along.
    pub(super) fn body(&self) -> Bytes {
        if self.raw_body.is_empty() {
            Bytes::copy_from_slice(self.body.as_bytes())
        } else {
            self.raw_body.clone()
        }
    }
}

impl HeaderValue {
    fn line(&self) -> (&[u8], &[u8]) {
        let value = if self.raw_value.is_empty() { self.value.as_bytes() } else { &self.raw_value };
        (self.key.as_bytes(), value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    /// Field `tag` of a message, which has a length.
    fn field(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).expect("a short field");
        assert!(length < 128, "one byte of length");
        [&[tag << 3 | 2, length], content].concat()
    }

    #[test]
    fn a_call_as_envoy_encodes_it_is_read() {
        let header = [field(1, b"x-api-key"), field(2, b"secret")].concat();
        let http = [
            field(2, b"GET"),
            field(3, &header),
            field(4, b"/a?b=c"),
            field(5, b"h"),
            field(10, b"HTTP/1.1"),
        ];
        let address = field(1, &field(1, &field(2, b"192.0.2.1")));
        let attributes = [field(1, &address), field(4, &field(2, &http.concat()))].concat();
        let read = CheckRequest::decode(&*field(1, &attributes)).expect("a message").attributes;
        let read = read.expect("attributes");
        let address = read.source.and_then(|peer| peer.address?.socket_address).expect("an address");
        assert_eq!(address.address, "192.0.2.1");
        let http = read.request.and_then(|request| request.http).expect("a request");
        assert_eq!((&*http.method, &*http.path, &*http.host), ("GET", "/a?b=c", "h"));
        assert_eq!(http.fields().collect::<Vec<_>>(), [(&b"x-api-key"[..], &b"secret"[..])]);
    }

    #[test]
    fn a_message_is_framed_once_and_completely() {
        let whole = framed(&CheckResponse { status: Some(Status::default()), ..CheckResponse::default() });
        assert_eq!(&whole[..], [0, 0, 0, 0, 2, 0x0a, 0]);
        assert_eq!(unframed(&whole).as_deref(), Ok(&whole[PREFIX..]));
        let cut = |change: fn(&mut Vec<u8>)| {
            let mut bytes = whole.to_vec();
            change(&mut bytes);
            unframed(&bytes.into())
        };
        assert_eq!(cut(|bytes| bytes.clear()), Err(BadFrame::Length));
        assert_eq!(cut(|bytes| bytes.truncate(4)), Err(BadFrame::Length));
        assert_eq!(cut(|bytes| bytes.truncate(6)), Err(BadFrame::Length));
        assert_eq!(cut(|bytes| bytes.push(0)), Err(BadFrame::Length));
        assert_eq!(cut(|bytes| bytes[0] = 1), Err(BadFrame::Compressed));
        assert_eq!(cut(|bytes| bytes[0] = 2), Err(BadFrame::Length));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let read = CheckRequest::decode(&*bytes);
            if let Ok(CheckRequest { attributes: Some(AttributeContext { request: Some(request), .. }) }) = read {
                request.http.map(|http| http.fields().count());
            }
            unframed(&bytes.into()).ok();
        }

        #[test]
        fn what_is_written_is_read_again(code in any::<i32>(), body: String, remove: Vec<String>) {
            let denied = DeniedHttpResponse { status: Some(HttpStatus { code }), headers: Vec::new(), body };
            let ok = OkHttpResponse { headers_to_remove: remove, ..OkHttpResponse::default() };
            let message = CheckResponse { status: None, denied_response: Some(denied), ok_response: Some(ok) };
            let read = unframed(&framed(&message)).map(|bytes| CheckResponse::decode(bytes).expect("a message"));
            assert!(read == Ok(message));
        }
    }
}

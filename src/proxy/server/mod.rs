//! Serves client connections: accept, PROXY protocol, TLS, HTTP/1.1 and HTTP/2.
//!
//! The top layer of the proxy: it uses all other parts, and none of them uses it.

pub(super) mod http1;
pub(super) mod http2;
pub mod listen;

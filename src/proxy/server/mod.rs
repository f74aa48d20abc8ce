//! Serving client connections: accepting, the PROXY protocol, TLS, HTTP/1.1 and HTTP/2.
//!
//! The top of the proxy: it uses everything else here, and nothing here uses it.

pub(super) mod http1;
pub(super) mod http2;
pub mod listen;
pub mod tls;

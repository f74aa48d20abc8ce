//! HTTP messages: heads, chunks, paths, fields, CORS, trace context, and where a request comes from.

pub mod answer;
pub mod chunks;
pub mod coding;
pub mod cors;
pub mod field_lines;
pub mod fields;
pub mod head;
pub mod original;
pub mod path;
pub mod source;
pub mod trace;
pub mod websocket;

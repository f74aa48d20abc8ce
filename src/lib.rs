//! Keygate: a reverse-proxy gateway that enforces API keys in front of app, RAG and memory backends.
//!
//! # Terms
//!
//! A client presents a *secret*; its *digest* finds the *key*, which belongs to a *workspace* on a *plan*. A *route*
//! requires *scopes* and names an *upstream*. Every *limit* that applies is *charged*, all or none: the result is an
//! *admission* or a *denial*. Each request adds one *usage record* to the *ledger*.
//!
//! # Dependencies
//!
//! ```text
//! main → cli → { app, admin, config, keyring, store, policy, model }
//! app → { proxy, admin, usage, telemetry, acme, store, counter, keyring, enduser, gate, config, policy, model }
//! proxy → { gate, usage, telemetry, counter, keyring, policy, model }
//! admin → { keyring, store, policy, model }              gate → { counter, keyring, enduser, policy, model }
//! usage → { store, policy, model }                       keyring → { store, policy, model }
//! enduser → { store, policy, model }                     config → { store, policy, model }
//! counter → { policy, model }                            store → { policy, model }
//! telemetry → { policy, model }                          acme → { policy, model }
//! envelope → { policy, model }                           http_client → model
//! policy → model → clock
//! ```
//!
//! Every module may use `clock`, `durable`, `metrics`, `envelope`, `http_client`, `server_tls` and `fileio`.
//!
//! # Invariants
//!
//! *Invariant:* `policy` and `model` have no `async`, no trait object, and do not ask what time it is.
//! *Invariant:* `gate` names neither Pingora nor axum nor a store.
//! *Invariant:* `proxy` and `admin` do not name each other.
//! *Invariant:* inside `admin`, `policy`, `proxy` and `store`, each part uses only parts below it.
//! *Invariant:* only `app`, and the commands that work on a store alone, name a backend.
//! *Invariant:* only the request filter admits and charges.
//! *Invariant:* nothing in the request path reads the ledger.
//! *Invariant:* time, randomness and the environment are arguments; every queue and cache has a bound.
//!
//! `tests/architecture.rs` checks these against the sources.

pub mod acme;
pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod counter;
pub mod durable;
pub mod enduser;
pub mod envelope;
pub mod fileio;
pub mod gate;
pub mod http_client;
pub mod keyring;
pub mod metrics;
pub mod model;
pub mod policy;
pub mod proxy;
pub mod server_tls;
pub mod store;
pub mod telemetry;
pub mod usage;

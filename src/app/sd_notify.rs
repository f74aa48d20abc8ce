//! Notifies the service manager: the protocol of `sd_notify(3)`, one datagram each.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The socket of the service manager; none if there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceNotifier(Option<SocketAddr>);

impl ServiceNotifier {
    /// `socket` is the value of `NOTIFY_SOCKET`: a path, or an abstract name after an `@`.
    pub(super) fn to(socket: Option<&str>) -> Self {
        let address = socket.map(|socket| match socket.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(socket),
        });
        match address.transpose() {
            Ok(address) => Self(address),
            Err(error) => {
                tracing::warn!(%error, "cannot reach service manager (NOTIFY_SOCKET), notifications disabled");
                Self(None)
            }
        }
    }

    /// The process serves.
    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    /// The process is stopping.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Another process is the main process from now on.
    pub(super) fn main_pid(&self, pid: Option<u32>) {
        if let Some(pid) = pid {
            self.tell(&format!("MAINPID={pid}"));
        }
    }

    fn tell(&self, state: &str) {
        let Some(address) = &self.0 else { return };
        let told = UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(state.as_bytes(), address));
        if let Err(error) = told {
            tracing::warn!(%error, state, "cannot notify service manager");
        }
    }
}

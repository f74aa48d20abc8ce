//! Opens connections to Redis. They are opened here and not by the driver, which would accept messages of any length.

use super::bounded::Bounded;
use super::endpoint::{CONNECT_WITHIN, RedisTls};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::Connect;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline, RedisConnectionInfo,
    RedisError, RedisFuture, Value,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A connection to one server of a cluster.
#[derive(Clone)]
pub(in crate::counter) struct ClusterPart(MultiplexedConnection);

/// Connects to one server, with TLS if there is a `connector`.
pub(super) async fn connect(
    (host, port): &(String, u16),
    connector: Option<&TlsConnector>,
    settings: &RedisConnectionInfo,
    config: &AsyncConnectionConfig,
) -> Result<MultiplexedConnection, RedisError> {
    let late = || RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
    let opened = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect((host.as_str(), *port)));
    let stream = opened.await.map_err(|_| late())??;
    stream.set_nodelay(true)?;
    let Some(connector) = connector else { return drive(stream, settings, config).await };
    let name = ServerName::try_from(host.clone());
    let name = name.map_err(|_| (ErrorKind::InvalidClientConfig, "a host has no valid name"))?;
    let secured = tokio::time::timeout(CONNECT_WITHIN, connector.connect(name, stream));
    drive(secured.await.map_err(|_| late())??, settings, config).await
}

/// Settings for TLS.
pub(super) fn connector(tls: &RedisTls) -> Result<TlsConnector, RedisError> {
    let unusable = |what: &'static str| RedisError::from((ErrorKind::InvalidClientConfig, what));
    let mut roots = RootCertStore::empty();
    match &tls.ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|_| unusable("the CA is not PEM"))?;
                roots.add(certificate).map_err(|_| unusable("the CA has no valid certificate"))?;
            }
            if roots.is_empty() {
                return Err(unusable("the CA has no certificate in PEM"));
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|_| unusable("TLS cannot be set up"))?
        .with_root_certificates(roots);
    let config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
            let chain = chain.map_err(|_| unusable("the client certificate is not PEM"))?;
            let key =
                PrivateKeyDer::from_pem_slice(key).map_err(|_| unusable("the client's key is not PEM"))?;
            let config = builder.with_client_auth_cert(chain, key);
            config.map_err(|_| unusable("the client certificate cannot be used with its key"))?
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn drive<S>(
    stream: S,
    settings: &RedisConnectionInfo,
    config: &AsyncConnectionConfig,
) -> Result<MultiplexedConnection, RedisError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let made = MultiplexedConnection::new_with_config(settings, Bounded::new(stream), config.clone());
    let late = |_| RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
    // It ends with the last handle of the connection.
    let (connection, driver) = tokio::time::timeout(CONNECT_WITHIN, made).await.map_err(late)??;
    tokio::spawn(driver);
    Ok(connection)
}

// === impl ClusterPart ===

impl Connect for ClusterPart {
    /// The driver chooses the servers. It keeps its settings for TLS to itself, so with TLS it also opens the connection, and the
    /// messages of these authenticated servers are not limited.
    fn connect_with_config<'a, T>(info: T, config: AsyncConnectionConfig) -> RedisFuture<'a, Self>
    where
        T: IntoConnectionInfo + Send + 'a,
    {
        Box::pin(async move {
            let info = info.into_connection_info()?;
            let connection = match info.addr() {
                ConnectionAddr::Tcp(host, port) => {
                    connect(&(host.clone(), *port), None, info.redis_settings(), &config).await?
                }
                _ => MultiplexedConnection::connect_with_config(info, config).await?,
            };
            Ok(Self(connection))
        })
    }
}

impl ConnectionLike for ClusterPart {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.0.req_packed_command(command)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.0.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }
}

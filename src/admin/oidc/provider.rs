//! What an identity provider says about itself, and the calls of it.
//!
//! Must not know: who signs in. Every call has a deadline, every answer a largest size, and redirects are not followed.

use super::OidcOptions;
use crate::admin::input::json;
use crate::fileio;
use crate::http_client::HttpClient;
use crate::model::server::HttpUrl;
use crate::policy::text::url::private_url;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use serde_json::{Map, Value};
use std::time::Duration;
use tokio::time::timeout;

/// A provider whose document has been read.
pub(super) struct Provider {
    /// Where people sign in.
    pub(super) authorization: HttpUrl,
    /// Where they sign out, if that is possible.
    pub(super) end_session: Option<HttpUrl>,
    /// Where a code is exchanged for tokens.
    pub(super) token: HttpClient,
    /// Whether the client's secret must be in the body of that call.
    pub(super) secret_in_body: bool,
    /// Where further claims are, if anywhere.
    pub(super) userinfo: Option<HttpClient>,
}

/// Where every provider has its document, after the issuer.
const DOCUMENT: &str = "/.well-known/openid-configuration";
/// Largest document or answer that is read, in bytes.
const ANSWER_BYTES: usize = 256 * 1024;
/// Largest key set, in bytes.
const JWKS_BYTES: usize = 1 << 20;

impl Provider {
    /// Reads the document and the key set of the issuer.
    pub(super) async fn read(options: &OidcOptions) -> Result<(Self, String), String> {
        let document = format!("{}{DOCUMENT}", options.issuer.trim_end_matches('/'));
        let place = private_url(&document).ok_or("the issuer is no URL")?;
        let is_encrypted = place.tls;
        let client =
            |place: HttpUrl| HttpClient::trusting(place, &options.trust).map_err(|error| error.to_string());
        let said = object(&get(&client(place)?, None, ANSWER_BYTES, options.timeout).await?)?;
        if said.get("issuer").and_then(Value::as_str) != Some(&options.issuer) {
            return Err(format!("{document} is of another issuer than admin.oidc.issuer"));
        }
        let place = |name: &str| match said.get(name).and_then(Value::as_str) {
            None => Ok(None),
            // On this machine plain HTTP is for a provider that is on it as well.
            Some(text) => private_url(text)
                .filter(|place| place.tls || !is_encrypted)
                .map(Some)
                .ok_or_else(|| format!("{name} is no https URL")),
        };
        let needed = |name: &str| place(name)?.ok_or_else(|| format!("{document} has no {name}"));
        let provider = Self {
            authorization: needed("authorization_endpoint")?,
            end_session: place("end_session_endpoint")?,
            token: client(needed("token_endpoint")?)?,
            secret_in_body: secret_in_body(&said),
            userinfo: place("userinfo_endpoint")?.map(client).transpose()?,
        };
        let keys = get(&client(needed("jwks_uri")?)?, None, JWKS_BYTES, options.timeout).await?;
        let keys = fileio::text_of(keys.to_vec()).map_err(|error| error.to_string())?;
        Ok((provider, keys))
    }
}

/// Whether a provider takes the client's secret in the body only. Basic is what it takes if it says nothing.
fn secret_in_body(said: &Map<String, Value>) -> bool {
    let methods = said.get("token_endpoint_auth_methods_supported").and_then(Value::as_array);
    let takes = |wanted: &str| methods.is_some_and(|all| all.iter().any(|one| one == wanted));
    takes("client_secret_post") && !takes("client_secret_basic")
}

/// The answer of a call that must succeed.
pub(super) async fn get(
    client: &HttpClient,
    bearer: Option<HeaderValue>,
    most: usize,
    within: Duration,
) -> Result<Bytes, String> {
    let mut request = Request::get(client.target()).header(ACCEPT, "application/json");
    if let Some(bearer) = bearer {
        request = request.header(AUTHORIZATION, bearer);
    }
    let request = request.body(Bytes::new()).map_err(|error| error.to_string())?;
    let response = call(client, request, most, within).await.map_err(|why| format!("{client}: {why}"))?;
    if response.status() != StatusCode::OK {
        return Err(format!("{client}: the answer is {}", response.status().as_u16()));
    }
    Ok(response.into_body())
}

/// Sends a form.
pub(super) async fn post(
    client: &HttpClient,
    authorization: Option<HeaderValue>,
    form: Bytes,
    within: Duration,
) -> Result<Response<Bytes>, String> {
    let mut request = Request::post(client.target())
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    if let Some(authorization) = authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    let request = request.body(form).map_err(|error| error.to_string())?;
    call(client, request, ANSWER_BYTES, within).await.map_err(|why| format!("{client}: {why}"))
}

/// Further claims about the holder of an access token.
pub(super) async fn userinfo(
    client: &HttpClient,
    bearer: HeaderValue,
    within: Duration,
) -> Result<Map<String, Value>, String> {
    object(&get(client, Some(bearer), ANSWER_BYTES, within).await?)
}

/// A JSON object.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    json::object(bytes).map_err(|error| error.to_string())
}

async fn call(
    client: &HttpClient,
    request: Request<Bytes>,
    most: usize,
    within: Duration,
) -> Result<Response<Bytes>, String> {
    let response = timeout(within, client.call(request, most)).await;
    response.map_err(|_| format!("no answer within {within:?}"))?.map_err(|error| error.to_string())
}

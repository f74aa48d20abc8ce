//! Header fields that backends trust because a proxy in front of them usually sets them: the client's address, scheme,
//! host, path and prefix of the request, and the client's identity.
//!
//! Must not know: who sent a field, or what Keygate sets under these names.
//!
//! *Invariant:* a name is compared in the one spelling to which CGI, WSGI and similar interfaces map all others.

use std::borrow::Cow;

/// The names, in lower case and with `-`. A `*` at the end stands for any suffix, also an empty one.
pub const CLAIMS: [&str; 69] = [
    "ali-cdn-real-ip",
    "cdn-src-ip",
    "cf-access-*",
    "cf-connecting-*",
    "cf-ipcountry",
    "cf-pseudo-ipv4",
    "cf-visitor",
    "client-ip",
    "fastly-client-ip",
    "fastly-ssl",
    "fly-client-ip",
    "forwarded*",
    "front-end-https",
    "http-client-ip",
    "http-x-forwarded*",
    "http-x-real-ip",
    "incap-client-ip",
    "l5d-*",
    "proxy",
    "proxy-client-ip",
    "remote-*",
    "ssl-client-*",
    "tailscale-user-*",
    "true-client-ip",
    "wl-proxy-*",
    "x-amzn-oidc-*",
    "x-anonymous-consumer",
    "x-appengine-*",
    "x-arr-*",
    "x-auth-request-*",
    "x-authenticated-*",
    "x-authentik-*",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-cdn-src-ip",
    "x-client-cert*",
    "x-client-ip",
    "x-client-ssl-*",
    "x-cluster-client-ip",
    "x-consumer-*",
    "x-credential-*",
    "x-envoy-*",
    "x-forward-for",
    "x-forwarded*",
    "x-goog-authenticated-user-*",
    "x-goog-iap-*",
    "x-host",
    "x-http-host-override",
    "x-https",
    "x-ms-client-principal*",
    "x-ms-token-*",
    "x-original-*",
    "x-originating-ip",
    "x-pomerium-*",
    "x-proxyuser-ip",
    "x-real-*",
    "x-remote-*",
    "x-replaced-path",
    "x-rewrite-*",
    "x-scheme",
    "x-ssl",
    "x-ssl-*",
    "x-tls-*",
    "x-true-*",
    "x-url-scheme",
    "x-userinfo",
    "x-vouch-*",
    "x-webauth-*",
    "x-weblogic-*",
];

/// The fields among these that Keygate itself sets.
pub const TOLD: [&str; 4] =
    ["x-forwarded-for", "x-forwarded-host", "x-forwarded-prefix", "x-forwarded-proto"];

/// Whether backends trust the field `name`, which is in lower case and in the spelling of [`dashed`].
pub fn is_claim(name: &str) -> bool {
    // No pattern begins with another one that has a star, so the last one that is not after the name decides.
    let behind = CLAIMS.partition_point(|claim| claim.trim_end_matches('*') <= name);
    let Some(claim) = behind.checked_sub(1).and_then(|at| CLAIMS.get(at)) else { return false };
    match claim.strip_suffix('*') {
        Some(front) => name.starts_with(front),
        None => *claim == name,
    }
}

/// The canonical spelling of a header name in lower case: everything except letters and digits becomes `-`.
pub fn dashed(name: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.bytes().all(is_plain) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect())
}

/// The prefix of the client's path that a rewrite removed: the path without the suffix, in whole segments, that both paths
/// share. None if nothing is removed.
pub fn prefix<'p>(path: &'p str, rewritten: &str) -> Option<&'p str> {
    let same = path.bytes().rev().zip(rewritten.bytes().rev()).take_while(|(a, b)| a == b).count();
    // The shared suffix begins with a slash or is empty.
    let tail = &path.as_bytes()[path.len() - same..];
    let from = tail.iter().position(|byte| *byte == b'/').map_or(path.len(), |at| path.len() - same + at);
    path.get(..from).filter(|prefix| !prefix.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_in_order_and_no_star_hides_another_name() {
        let bare: Vec<&str> = CLAIMS.iter().map(|claim| claim.trim_end_matches('*')).collect();
        assert!(bare.is_sorted(), "they are searched by halves");
        for (n, front) in CLAIMS.iter().enumerate().filter_map(|(n, c)| Some((n, c.strip_suffix('*')?))) {
            let hidden = bare.iter().enumerate().find(|(m, other)| *m != n && other.starts_with(front));
            assert_eq!(hidden, None, "{front}*");
        }
        assert!(TOLD.iter().all(|name| is_claim(name)));
    }

    #[test]
    fn each_name_is_found_and_its_neighbours_are_not() {
        for claim in CLAIMS {
            let front = claim.trim_end_matches('*');
            assert!(is_claim(front), "{claim}");
            assert_eq!(is_claim(&format!("{front}x")), claim.ends_with('*'), "{claim}");
        }
        for other in [
            "",
            "a",
            "accept",
            "x-a",
            "x-api-key",
            "x-end-user-id",
            "x-requested-with",
            "zz",
            "cf-ray",
            "via",
        ] {
            assert!(!is_claim(other), "{other}");
        }
    }

    #[test]
    fn every_spelling_of_a_claim_header_is_recognised() {
        for name in ["x-forwarded-for", "x_forwarded_for", "x.forwarded~for", "x-forwarded_for"] {
            assert_eq!(dashed(name), "x-forwarded-for");
        }
    }

    #[test]
    fn the_prefix_is_what_the_backend_does_not_see() {
        for (path, rewritten, expected) in [
            ("/v1/app/x", "/x", Some("/v1/app")),
            ("/v1/app/x", "/internal/x", Some("/v1/app")),
            ("/v1/app/a1/chat/x", "/internal/a1/api/chat/x", Some("/v1/app/a1")),
            ("/v1/app/", "/", Some("/v1/app")),
            ("/v1/app", "/other", Some("/v1/app")),
            ("/v1/app/ax", "/in/bx", Some("/v1/app/ax")),
            ("/x", "/v1/x", None),
            ("/x", "/x", None),
        ] {
            assert_eq!(prefix(path, rewritten), expected, "{path} {rewritten}");
        }
    }
}

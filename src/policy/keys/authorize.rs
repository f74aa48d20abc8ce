//! Whether a key may make a request. Contract 4.2, steps 3 to 6, for a key that has been found.
//!
//! Must not know: how the key was found, what it has spent.

use super::denial::Denial;
use crate::clock::Timestamp;
use crate::model::key::{Key, KeyType};
use crate::model::scope::Scopes;
use std::net::IpAddr;

/// What a request requires.
#[derive(Clone, Copy, Debug)]
pub struct AuthorizationRequest<'r> {
    /// The scopes that the route requires.
    pub scopes: &'r Scopes,
    /// The resource that the request names.
    pub resource: ResourceRequest<'r>,
    /// The client's address.
    pub address: IpAddr,
    /// The time of the request.
    pub at: Timestamp,
}

/// The resource that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceRequest<'r> {
    /// The route accepts every key, whatever it is bound to.
    Any,
    /// The route has no resource, so keys that are bound to one are refused.
    None,
    /// This resource; none if the request does not name it where the route expects it.
    For(Option<&'r str>),
}

/// Whether a key is valid, whatever it may do.
pub fn check_active(key: &Key, at: Timestamp) -> Result<(), Denial> {
    if !key.is_active {
        return Err(Denial::KeyInactive);
    }
    if key.expires_at.is_some_and(|end| end <= at) {
        return Err(Denial::KeyExpired);
    }
    Ok(())
}

/// The first reason for refusal, in the order of the contract.
pub fn authorize(key: &Key, asked: &AuthorizationRequest<'_>) -> Result<(), Denial> {
    check_active(key, asked.at)?;
    let lacking = key.scopes.lacking(asked.scopes);
    if !lacking.is_empty() {
        return Err(Denial::Scope(lacking));
    }
    let may_reach = match asked.resource {
        ResourceRequest::Any => true,
        ResourceRequest::None => key.kind == KeyType::Service,
        ResourceRequest::For(resource) => key.kind == KeyType::Service || resource == Some(&*key.resource_id),
    };
    if !may_reach {
        return Err(Denial::Resource);
    }
    let address = asked.address.to_canonical();
    if !key.allowed_ips.is_empty() && !key.allowed_ips.iter().any(|net| net.contains(&address)) {
        return Err(Denial::Address(address));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::KeyId;
    use crate::model::key::Ceilings;
    use crate::model::scope::check_granted;

    const NOON: Timestamp = Timestamp::from_secs(43_200);

    fn key(kind: KeyType) -> Key {
        Key {
            id: KeyId::new(NOON),
            workspace_id: "w".parse().expect("an id"),
            kind,
            scopes: scopes(kind.implied_scope().as_slice()),
            resource_id: "r1".into(),
            ceilings: Ceilings {
                rate_limit: 1,
                rate_burst: None,
                daily_request_limit: Some(1),
                quota_limit: None,
                concurrency_limit: None,
                limits: Box::default(),
            },
            allowed_ips: Box::default(),
            is_active: true,
            expires_at: None,
            end_user: None,
        }
    }

    fn scopes(words: &[&str]) -> Scopes {
        Scopes::of(words.iter().copied(), check_granted).expect("scopes")
    }

    fn asked<'r>(resource: ResourceRequest<'r>, wanted: &'r Scopes) -> AuthorizationRequest<'r> {
        let address = IpAddr::from([192, 0, 2, 7]);
        AuthorizationRequest { scopes: wanted, resource, address, at: NOON }
    }

    #[test]
    fn a_request_is_authorized_or_denied_for_the_first_reason_that_applies() {
        let second = std::time::Duration::from_secs(1);
        let nets = |texts: &[&str]| texts.iter().map(|t| t.parse().expect("a network")).collect::<Box<[_]>>();
        type KeyEdit = Box<dyn Fn(&mut Key)>;
        let set = |f: fn(&mut Key)| -> KeyEdit { Box::new(f) };
        let address = Denial::Address(IpAddr::from([192, 0, 2, 7]));
        let rows: Vec<(&str, KeyType, KeyEdit, ResourceRequest<'_>, Option<Denial>)> = vec![
            ("plain", KeyType::App, set(|_| ()), ResourceRequest::Any, None),
            (
                "off",
                KeyType::App,
                set(|k| k.is_active = false),
                ResourceRequest::Any,
                Some(Denial::KeyInactive),
            ),
            (
                "off and expired",
                KeyType::App,
                set(|k| {
                    k.is_active = false;
                    k.expires_at = Some(NOON)
                }),
                ResourceRequest::Any,
                Some(Denial::KeyInactive),
            ),
            (
                "expires now",
                KeyType::App,
                set(|k| k.expires_at = Some(NOON)),
                ResourceRequest::Any,
                Some(Denial::KeyExpired),
            ),
            (
                "expires soon",
                KeyType::App,
                Box::new(move |k| k.expires_at = Some(NOON.plus(second))),
                ResourceRequest::Any,
                None,
            ),
            (
                "expired and no scope",
                KeyType::Rag,
                set(|k| k.expires_at = Some(NOON)),
                ResourceRequest::Any,
                Some(Denial::KeyExpired),
            ),
            (
                "other scope",
                KeyType::Rag,
                set(|_| ()),
                ResourceRequest::Any,
                Some(Denial::Scope(scopes(&["app"]))),
            ),
            (
                "no scope and other resource",
                KeyType::Memory,
                set(|_| ()),
                ResourceRequest::For(Some("r2")),
                Some(Denial::Scope(scopes(&["app"]))),
            ),
            (
                "extra scope",
                KeyType::Rag,
                set(|k| k.scopes = scopes(&["rag", "a*"])),
                ResourceRequest::Any,
                None,
            ),
            ("agents hold app", KeyType::Agent, set(|_| ()), ResourceRequest::Any, None),
            ("teams hold app", KeyType::MultiAgent, set(|_| ()), ResourceRequest::Any, None),
            ("workflows hold app", KeyType::Workflow, set(|_| ()), ResourceRequest::Any, None),
            ("pure workflows hold app", KeyType::PureWorkflow, set(|_| ()), ResourceRequest::Any, None),
            ("own resource", KeyType::App, set(|_| ()), ResourceRequest::For(Some("r1")), None),
            (
                "other resource",
                KeyType::App,
                set(|_| ()),
                ResourceRequest::For(Some("r2")),
                Some(Denial::Resource),
            ),
            (
                "resource by case",
                KeyType::App,
                set(|_| ()),
                ResourceRequest::For(Some("R1")),
                Some(Denial::Resource),
            ),
            (
                "resource not named",
                KeyType::App,
                set(|_| ()),
                ResourceRequest::For(None),
                Some(Denial::Resource),
            ),
            (
                "bound, and the route is about nothing",
                KeyType::App,
                set(|_| ()),
                ResourceRequest::None,
                Some(Denial::Resource),
            ),
            (
                "service, and the route is about nothing",
                KeyType::Service,
                set(|k| k.scopes = scopes(&["*"])),
                ResourceRequest::None,
                None,
            ),
            (
                "no scopes at all",
                KeyType::Service,
                set(|_| ()),
                ResourceRequest::None,
                Some(Denial::Scope(scopes(&["app"]))),
            ),
            (
                "service reaches all",
                KeyType::Service,
                set(|k| k.scopes = scopes(&["app"])),
                ResourceRequest::For(Some("r2")),
                None,
            ),
            (
                "service, not named",
                KeyType::Service,
                set(|k| k.scopes = scopes(&["app"])),
                ResourceRequest::For(None),
                None,
            ),
            (
                "listed address",
                KeyType::App,
                Box::new(move |k| k.allowed_ips = nets(&["192.0.2.7/32"])),
                ResourceRequest::Any,
                None,
            ),
            (
                "listed network",
                KeyType::App,
                Box::new(move |k| k.allowed_ips = nets(&["2001:db8::/32", "192.0.2.0/24"])),
                ResourceRequest::Any,
                None,
            ),
            (
                "other network",
                KeyType::App,
                Box::new(move |k| k.allowed_ips = nets(&["198.51.100.0/24"])),
                ResourceRequest::Any,
                Some(address.clone()),
            ),
            (
                "other family",
                KeyType::App,
                Box::new(move |k| k.allowed_ips = nets(&["::/0"])),
                ResourceRequest::Any,
                Some(address.clone()),
            ),
            (
                "resource before address",
                KeyType::App,
                Box::new(move |k| k.allowed_ips = nets(&["::/0"])),
                ResourceRequest::For(Some("r2")),
                Some(Denial::Resource),
            ),
        ];
        for (name, kind, change, resource, expected) in rows {
            let mut subject = key(kind);
            change(&mut subject);
            assert_eq!(authorize(&subject, &asked(resource, &scopes(&["app"]))).err(), expected, "{name}");
        }
    }

    #[test]
    fn an_ipv4_mapped_ipv6_address_matches_ipv4_networks() {
        let mut subject = key(KeyType::App);
        subject.allowed_ips = Box::new(["192.0.2.0/24".parse().expect("a network")]);
        let wanted = scopes(&["app"]);
        let mut request = asked(ResourceRequest::Any, &wanted);
        request.address = "::ffff:192.0.2.7".parse().expect("an address");
        assert_eq!(authorize(&subject, &request), Ok(()));
    }
}

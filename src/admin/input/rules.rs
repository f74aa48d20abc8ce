//! Rules for values, the same for creating and changing.

use super::fields::{FieldError, InputFields, ValidationErrors};
use super::instant::{INSTANT_ALLOWED, parse_instant};
use crate::clock::Timestamp;
use crate::model::calendar::{self, Calendar, MONTH_DAY_MAX, UnknownZone, WeekDay};
use crate::model::key::{
    CEILING_MAX, CEILINGS_MAX, Ceiling, DELETED_KEYS_DAYS_MAX, Measure, Owner, Per, RATE_MAX,
    RETENTION_DAYS_MAX,
};
use crate::model::scope::{Scopes, check_granted};
use crate::policy::keys::credential::{END_USER_MAX, is_end_user};
use crate::policy::keys::secret::SECRET_MAX;
use chrono_tz::Tz;
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::str::FromStr;

/// Longest name, in characters.
pub(super) const NAME_MAX: usize = 255;
/// Longest description, in characters.
const DESCRIPTION_MAX: usize = 2_000;
/// Longest resource id, in characters.
const RESOURCE_MAX: usize = 255;
/// Most networks in an allow list.
const NETWORKS_MAX: usize = 100;
/// Most entries of a key's metadata.
const METADATA_ENTRIES_MAX: usize = 64;
/// Most bytes of a key's metadata, written as JSON.
const METADATA_BYTES_MAX: usize = 16 * 1024;

// === text ===

/// A name: 1 to 255 characters, not only white space; white space around it is removed.
pub(super) fn name(value: &Value) -> Result<String, ValidationErrors> {
    let allowed = "must be 1 to 255 characters, without control characters";
    let text = value.as_str().ok_or(allowed)?;
    if text.trim().is_empty() || text.chars().count() > NAME_MAX || text.chars().any(char::is_control) {
        return Err(allowed.into());
    }
    Ok(text.trim().to_owned())
}

/// The customer's id of an end user.
pub(super) fn end_user(value: &Value) -> Result<String, ValidationErrors> {
    let allowed = || format!("must be 1 to {END_USER_MAX} characters, without control characters");
    let text = value.as_str().filter(|text| is_end_user(text)).ok_or_else(allowed)?;
    Ok(text.to_owned())
}

/// A name that may be empty.
pub(super) fn name_or_empty(value: &Value) -> Result<String, ValidationErrors> {
    let is_blank = |text: &str| text.chars().all(|c| c.is_whitespace() && !c.is_control());
    let is_short = |text: &str| text.chars().count() <= NAME_MAX;
    let empty = value.as_str().is_some_and(|text| is_blank(text) && is_short(text));
    if empty { Ok(String::new()) } else { name(value) }
}

/// A description: any text of up to 2000 characters.
pub(super) fn description(value: &Value) -> Result<String, ValidationErrors> {
    let text = value.as_str().ok_or("must be text")?;
    if text.chars().count() > DESCRIPTION_MAX || text.contains('\0') {
        return Err("must be at most 2000 characters, without NUL".into());
    }
    Ok(text.to_owned())
}

/// A resource id: 1 to 255 printable characters.
pub(super) fn resource_id(value: &Value) -> Result<Box<str>, ValidationErrors> {
    let allowed = "must be 1 to 255 printable characters, without white space around them";
    let text = value.as_str().ok_or(allowed)?;
    let length = text.chars().count();
    if length == 0 || length > RESOURCE_MAX || text.trim() != text || text.chars().any(char::is_control) {
        return Err(allowed.into());
    }
    Ok(text.into())
}

/// The id of a key in another system.
pub(super) fn external_id(value: &Value) -> Result<String, ValidationErrors> {
    resource_id(value).map(Into::into)
}

/// A secret, made by Keygate or imported.
pub(super) fn secret(value: &Value) -> Result<String, ValidationErrors> {
    let text = value.as_str().unwrap_or_default();
    if text.is_empty() || text.len() > SECRET_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("must be 1 to {SECRET_MAX} visible ASCII characters").into());
    }
    Ok(text.to_owned())
}

/// One of a closed set of words, or an id.
pub(super) fn word<T: FromStr<Err: ToString>>(value: &Value) -> Result<T, ValidationErrors> {
    let text = value.as_str().ok_or("must be text")?;
    text.parse().map_err(|e: T::Err| e.to_string().into())
}

/// Yes or no.
pub(super) fn flag(value: &Value) -> Result<bool, ValidationErrors> {
    value.as_bool().ok_or_else(|| "must be true or false".into())
}

// === numbers ===

/// A whole number from `min` to `max`.
pub(super) fn whole(min: u64, max: u64) -> impl Fn(&Value) -> Result<u64, ValidationErrors> {
    move |value| match integer(value).and_then(|number| u64::try_from(number).ok()) {
        Some(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("must be a whole number from {min} to {max}").into()),
    }
}

/// A whole number in any notation: JSON does not distinguish 5, 5.0 and 0.5e1.
#[expect(clippy::cast_possible_truncation, reason = "whole, and of a size that is held exactly")]
fn integer(value: &Value) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let exact = |float: &f64| float.fract() == 0.0 && float.abs() < EXACT;
    value.as_i64().or_else(|| value.as_f64().filter(exact).map(|float| float as i64))
}

/// A limit of any size.
pub(super) fn ceiling(value: &Value) -> Result<u64, ValidationErrors> {
    whole(1, CEILING_MAX)(value)
}

/// A rate or burst, in requests per second or requests.
pub(super) fn rate(value: &Value) -> Result<u32, ValidationErrors> {
    narrow(value, RATE_MAX)
}

/// A number of days.
pub(super) fn days(value: &Value) -> Result<u32, ValidationErrors> {
    narrow(value, RETENTION_DAYS_MAX)
}

/// For how many days a deleted key can be restored; 0: not at all.
pub(super) fn deleted_keys_days(value: &Value) -> Result<u32, ValidationErrors> {
    let number = whole(0, u64::from(DELETED_KEYS_DAYS_MAX))(value)?;
    u32::try_from(number).map_err(|_| ValidationErrors::from("is too large"))
}

/// A number of requests in flight.
pub(super) fn in_flight(value: &Value) -> Result<u32, ValidationErrors> {
    narrow(value, u32::MAX)
}

fn narrow(value: &Value, max: u32) -> Result<u32, ValidationErrors> {
    let number = whole(1, u64::from(max))(value)?;
    u32::try_from(number).map_err(|_| ValidationErrors::from("is too large"))
}

// === lists ===

/// Scopes: at most 64, none twice; an empty list grants nothing.
pub(super) fn scopes(value: &Value) -> Result<Scopes, ValidationErrors> {
    let allowed = "must be a list of scopes, as in [\"orders:read\", \"orders:*\"]; [] grants nothing";
    let list = value.as_array().ok_or(allowed)?;
    let words: Vec<&str> = list.iter().map(|word| word.as_str().unwrap_or_default()).collect();
    Scopes::of(words, check_granted).map_err(|(place, bad)| {
        ValidationErrors(ValidationErrors::from(bad.to_string()).within(place).collect())
    })
}

/// Further limits of a key: at most eight, one for each (count, per).
pub(super) fn limits(value: &Value) -> Result<Box<[Ceiling]>, ValidationErrors> {
    list_of_limits(value, "{count, per, max}", |_| Owner::Workspace)
}

/// Further limits of a plan: at most eight, one for each (of, count, per).
pub(super) fn plan_limits(value: &Value) -> Result<Box<[Ceiling]>, ValidationErrors> {
    list_of_limits(value, "{of, count, per, max}", |fields| {
        fields.optional("of", word::<Owner>).unwrap_or(Owner::Workspace)
    })
}

fn list_of_limits(
    value: &Value,
    form: &str,
    of: impl Fn(&mut InputFields<'_>) -> Owner,
) -> Result<Box<[Ceiling]>, ValidationErrors> {
    let list = value.as_array().ok_or_else(|| format!("must be a list of {form}"))?;
    if list.len() > CEILINGS_MAX {
        return Err(format!("must be at most {CEILINGS_MAX} limits").into());
    }
    let mut errors = Vec::new();
    let mut found: Vec<Ceiling> = Vec::with_capacity(list.len());
    for (place, value) in list.iter().enumerate() {
        match one_limit(value, form, &of) {
            Err(flaw) => errors.extend(flaw.within(place)),
            Ok(limit) if found.iter().any(|f| f.is_like(&limit)) => {
                let why = format!("there already is a limit of {} per {}", limit.count, limit.per);
                errors.extend(ValidationErrors::from(why).within(place));
            }
            Ok(limit) => found.push(limit),
        }
    }
    if errors.is_empty() { Ok(found.into()) } else { Err(ValidationErrors(errors)) }
}

fn one_limit(
    value: &Value,
    form: &str,
    of: impl Fn(&mut InputFields<'_>) -> Owner,
) -> Result<Ceiling, ValidationErrors> {
    let map = value.as_object().ok_or_else(|| format!("must be an object {form}"))?;
    let mut fields = InputFields::of(map);
    let of = of(&mut fields);
    let count = fields.required("count", word::<Measure>);
    let per = fields.required("per", word::<Per>);
    let max = match per {
        Some(Per::Second) => fields.required("max", |v| rate(v).map(u64::from)),
        _ => fields.required("max", ceiling),
    };
    if let (Some(count), Some(per)) = (count, per)
        && let Err(why) = (Ceiling { of, count, per, max: 0 }).check()
    {
        fields.refuse("per", why);
    }
    match (count, per, max, fields.finish()) {
        (Some(count), Some(per), Some(max), errors) if errors.is_empty() => {
            Ok(Ceiling { of, count, per, max })
        }
        (.., errors) => Err(ValidationErrors(errors)),
    }
}

/// When days, weeks and months begin; absent fields have their defaults.
pub(super) fn calendar(value: &Value) -> Result<Calendar, ValidationErrors> {
    let map = value.as_object().ok_or("must be an object {zone, month_day, week_day}")?;
    let mut fields = InputFields::of(map);
    let usual = Calendar::UTC;
    let found = Calendar {
        zone: fields.optional("zone", zone).unwrap_or(usual.zone),
        month_day: fields.optional("month_day", month_day).unwrap_or(usual.month_day),
        week_day: fields.optional("week_day", word::<WeekDay>).unwrap_or(usual.week_day),
    };
    let errors =
        fields.finish().into_iter().map(|flaw| FieldError { field: format!(".{}", flaw.field), ..flaw });
    let errors: Vec<FieldError> = errors.collect();
    if errors.is_empty() { Ok(found) } else { Err(ValidationErrors(errors)) }
}

fn month_day(value: &Value) -> Result<u8, ValidationErrors> {
    whole(1, MONTH_DAY_MAX.into())(value).map(|day| u8::try_from(day).unwrap_or(MONTH_DAY_MAX))
}

fn zone(value: &Value) -> Result<Tz, ValidationErrors> {
    let named = value.as_str().ok_or(UnknownZone).and_then(calendar::zone);
    named.map_err(|unknown| unknown.to_string().into())
}

/// Source addresses and networks.
pub(super) fn networks(value: &Value) -> Result<Box<[IpNet]>, ValidationErrors> {
    let list = value.as_array().ok_or("must be a list of addresses and networks, as in 10.0.0.0/8")?;
    if list.len() > NETWORKS_MAX {
        return Err(format!("must be at most {NETWORKS_MAX} addresses and networks").into());
    }
    let mut errors = Vec::new();
    let mut found = Vec::with_capacity(list.len());
    for (place, value) in list.iter().enumerate() {
        match network(value) {
            Ok(net) => found.push(net),
            Err(flaw) => errors.extend(flaw.within(place)),
        }
    }
    if errors.is_empty() { Ok(found.into()) } else { Err(ValidationErrors(errors)) }
}

fn network(value: &Value) -> Result<IpNet, ValidationErrors> {
    let allowed = "must be an address or a network, as in 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32";
    let text = value.as_str().ok_or(allowed)?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let net = text.parse::<IpNet>().map_err(|_| ValidationErrors::from(allowed))?;
    if net.addr() != net.network() {
        let meant = net.trunc();
        return Err(format!("has bits set behind its prefix; did you mean {meant}?").into());
    }
    Ok(net)
}

// === the rest ===

/// An instant after `now`, or `unchanged`: an expiry that has passed may stay.
pub(super) fn future_or(
    now: Timestamp,
    unchanged: Option<Timestamp>,
) -> impl Fn(&Value) -> Result<Timestamp, ValidationErrors> {
    move |value| {
        let at = match value {
            Value::String(text) => parse_instant(text),
            number => integer(number).and_then(|number| parse_instant(&number.to_string())),
        };
        let at = at.ok_or(INSTANT_ALLOWED)?;
        if at > now || Some(at) == unchanged { Ok(at) } else { Err("must be in the future".into()) }
    }
}

/// The caller's own data.
pub(super) fn metadata(value: &Value) -> Result<Map<String, Value>, ValidationErrors> {
    let map = value.as_object().ok_or("must be an object")?;
    if map.len() > METADATA_ENTRIES_MAX {
        return Err(format!("must have at most {METADATA_ENTRIES_MAX} entries").into());
    }
    let bytes = serde_json::to_string(map).map_err(|_| ValidationErrors::from("must be an object"))?;
    if bytes.len() > METADATA_BYTES_MAX {
        return Err(format!("must be at most {METADATA_BYTES_MAX} bytes of JSON").into());
    }
    if map.iter().any(|(name, value)| name.contains('\0') || holds_nul(value)) {
        return Err("must not hold NUL characters".into());
    }
    Ok(map.clone())
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(list) => list.iter().any(holds_nul),
        Value::Object(map) => map.iter().any(|(name, inner)| name.contains('\0') || holds_nul(inner)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

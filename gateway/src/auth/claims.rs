//! What a token says, read strictly: one JSON object without a name twice, and what its claims mean here.
//!
//! It believes nothing by itself: signatures are [`super::jwt`]'s.

use std::fmt;

use serde::{
    Deserialize,
    de::{Deserializer, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use wire::{ModelName, Scope};

use super::jwt::Refused;
use crate::config::Jwt;

/// The longest subject, in bytes.
const LONGEST_SUBJECT: usize = 255;

/// A JSON object in which no name comes twice, at any depth: two readers of one text must not see two things.
#[derive(Debug, Clone, PartialEq)]
pub struct Object(pub Map<String, Value>);

/// Who holds a good token, and what it lets them do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The person or program, as the issuer names it.
    pub subject: String,
    /// What they may do.
    pub scopes: Vec<Scope>,
    /// The models they may call; empty: all.
    pub models: Vec<ModelName>,
    /// When the token was issued, in Unix milliseconds; 0 if it does not say.
    pub issued_at_ms: i64,
    /// When the token is good no longer, in Unix milliseconds.
    pub expires_at_ms: i64,
}

impl Holder {
    /// What the claims mean; the signature has been checked, `now` is in Unix seconds.
    pub fn read(claims: &Map<String, Value>, settings: &Jwt, now: i64) -> Result<Self, Refused> {
        let text = |name| claims.get(name).and_then(Value::as_str);
        if text("iss").is_none() || text("iss") != settings.issuer.as_deref() {
            return Err(Refused::Claim("iss"));
        }
        let audience = settings.audience.as_deref().ok_or(Refused::Claim("aud"))?;
        let named = match claims.get("aud") {
            Some(Value::String(one)) => one == audience,
            Some(Value::Array(all)) => all.iter().all(Value::is_string) && all.iter().any(|one| one == audience),
            _ => false,
        };
        if !named {
            return Err(Refused::Claim("aud"));
        }
        if text("sub").is_none() {
            return Err(Refused::Claim("sub"));
        }
        let (issued, expires) = times(claims, settings, now)?;
        let subject = at(claims, &settings.subject_claim).and_then(Value::as_str);
        let subject = subject.filter(|subject| {
            !subject.trim().is_empty() && subject.len() <= LONGEST_SUBJECT && !subject.chars().any(char::is_control)
        });
        if let Some(claim) = &settings.tenant_claim {
            let tenants = words(at(claims, claim)).ok_or(Refused::Tenant)?;
            if !tenants.iter().any(|tenant| settings.tenants.contains(tenant)) {
                return Err(Refused::Tenant);
            }
        }
        Ok(Self {
            subject: subject.ok_or(Refused::Subject)?.to_owned(),
            scopes: scopes(claims, settings),
            models: models(claims, settings)?,
            issued_at_ms: issued.saturating_mul(1000),
            expires_at_ms: expires.saturating_mul(1000),
        })
    }
}

/// Checks when the token is good; when it was issued (0 if it does not say) and its end, in Unix seconds.
fn times(claims: &Map<String, Value>, settings: &Jwt, now: i64) -> Result<(i64, i64), Refused> {
    let seconds = |time: std::time::Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let leeway = seconds(settings.leeway);
    let time = |name: &'static str| match claims.get(name) {
        None => Ok(None),
        // A fraction of a second more or less is within any leeway.
        Some(Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) if whole >= 0 => Ok(Some(whole)),
            #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
            (None, Some(part)) if (0.0..9e15).contains(&part) => Ok(Some(part as i64)),
            _ => Err(Refused::Claim(name)),
        },
        Some(_) => Err(Refused::Claim(name)),
    };
    let expires = time("exp")?.ok_or(Refused::Claim("exp"))?;
    if expires.saturating_add(leeway) <= now {
        return Err(Refused::Expired);
    }
    if expires.saturating_sub(now) > seconds(settings.longest).saturating_add(leeway) {
        return Err(Refused::TooLong);
    }
    let issued = time("iat")?;
    let begins = time("nbf")?.max(issued);
    if begins.is_some_and(|begins| begins.saturating_sub(leeway) > now) {
        return Err(Refused::NotYet);
    }
    Ok((issued.unwrap_or(0), expires))
}

fn scopes(claims: &Map<String, Value>, settings: &Jwt) -> Vec<Scope> {
    let words = words(at(claims, &settings.scopes_claim)).unwrap_or_default();
    let meant = |word: &String| match settings.scopes.get(word) {
        Some(scopes) => scopes.clone(),
        None if settings.scopes.is_empty() => Scope::parse(word).into_iter().collect(),
        None => Vec::new(),
    };
    let mut scopes: Vec<Scope> = words.iter().flat_map(meant).collect();
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

fn models(claims: &Map<String, Value>, settings: &Jwt) -> Result<Vec<ModelName>, Refused> {
    let Some(claim) = &settings.models_claim else {
        return Ok(Vec::new());
    };
    let named = words(at(claims, claim)).unwrap_or_default();
    let models: Result<Vec<ModelName>, _> = named.iter().map(|name| name.parse()).collect();
    // An empty list of ours would mean all models.
    models.ok().filter(|models| !models.is_empty()).ok_or(Refused::Models)
}

/// The claim of that name; `/a/b` is claim `b` in claim `a` (RFC 6901).
fn at<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let Some(path) = name.strip_prefix('/') else {
        return claims.get(name);
    };
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    let found = claims.get(&first.replace("~1", "/").replace("~0", "~"))?;
    if rest.is_empty() {
        return Some(found);
    }
    found.pointer(&format!("/{rest}"))
}

/// Words in one text (RFC 6749, section 3.3), or a list of texts.
fn words(claim: Option<&Value>) -> Option<Vec<String>> {
    match claim? {
        Value::String(text) => Some(text.split_ascii_whitespace().map(ToOwned::to_owned).collect()),
        Value::Array(list) => list.iter().map(|word| word.as_str().map(ToOwned::to_owned)).collect(),
        _ => None,
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Strict::deserialize(deserializer)?.0 {
            Value::Object(map) => Ok(Self(map)),
            _ => Err(D::Error::custom("no object")),
        }
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader).map(Self)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, is: bool) -> Result<Value, E> {
        Ok(is.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((name, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("a name comes twice"));
            }
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_000_000;

    fn settings() -> Jwt {
        Jwt {
            issuer: Some("i".into()),
            audience: Some("hive".into()),
            ..Jwt::default()
        }
    }

    fn claims() -> Value {
        json!({"iss": "i", "aud": "hive", "sub": "ann", "exp": NOW + 60, "scope": "infer x"})
    }

    fn read(settings: &Jwt, change: impl Fn(&mut Value)) -> Result<Holder, Refused> {
        let mut claims = claims();
        change(&mut claims);
        Holder::read(claims.as_object().unwrap(), settings, NOW)
    }

    #[test]
    fn a_good_token_says_who_holds_it_and_what_they_may_do() {
        let holder = read(&settings(), |_| ()).unwrap();
        assert_eq!(
            (holder.subject.as_str(), holder.scopes, holder.models),
            ("ann", vec![Scope::Infer], vec![])
        );
        assert_eq!(holder.expires_at_ms, (NOW + 60) * 1000);
        assert!(read(&settings(), |claims| claims["aud"] = json!(["other", "hive"])).is_ok());
    }

    #[test]
    fn each_required_claim_must_be_there_and_of_its_own_kind() {
        for (claim, bad) in [
            ("iss", json!("j")),
            ("iss", json!(["i"])),
            ("aud", json!("other")),
            ("aud", json!(["other"])),
            ("aud", json!(["hive", 7])),
            ("aud", json!({"hive": true})),
            ("sub", json!(7)),
            ("exp", json!("1000060")),
            ("exp", json!(-1)),
            ("exp", json!(1e300)),
            ("nbf", json!("999")),
            ("iat", json!(true)),
        ] {
            let refused = read(&settings(), |claims| claims[claim] = bad.clone()).unwrap_err();
            assert_eq!(refused, Refused::Claim(claim), "{bad}");
        }
        for claim in ["iss", "aud", "sub", "exp"] {
            let without = |claims: &mut Value| drop(claims.as_object_mut().unwrap().remove(claim));
            assert_eq!(read(&settings(), without), Err(Refused::Claim(claim)));
        }
    }

    #[test]
    fn a_token_is_good_in_its_time_alone_give_or_take_the_leeway() {
        let at = |claim: &'static str, time: i64| read(&settings(), |claims| claims[claim] = json!(time)).map(drop);
        assert_eq!(at("exp", NOW - 30), Err(Refused::Expired));
        assert_eq!(at("exp", NOW - 29), Ok(()));
        assert_eq!(at("exp", NOW + 3630), Ok(()));
        assert_eq!(at("exp", NOW + 3631), Err(Refused::TooLong));
        assert_eq!(at("exp", i64::MAX), Err(Refused::TooLong));
        for claim in ["nbf", "iat"] {
            assert_eq!(at(claim, NOW + 30), Ok(()));
            assert_eq!(at(claim, NOW + 31), Err(Refused::NotYet));
        }
    }

    #[test]
    fn scopes_go_by_the_operators_table_where_there_is_one() {
        let mut settings = settings();
        settings.scopes_claim = "/realm/roles".into();
        settings.scopes = [("staff".to_owned(), vec![Scope::Infer, Scope::ModelsRead])].into();
        let roles = |roles: Value| {
            let holder = read(&settings, |claims| claims["realm"] = json!({"roles": roles})).unwrap();
            holder.scopes
        };
        assert_eq!(roles(json!(["staff", "admin"])), [Scope::Infer, Scope::ModelsRead]);
        assert_eq!(roles(json!(["admin"])), []);
        assert_eq!(roles(json!({"staff": true})), []);
    }

    #[test]
    fn a_claim_that_should_narrow_and_is_not_there_lets_nobody_in() {
        let mut settings = settings();
        settings.models_claim = Some("models".into());
        for bad in [
            json!([]),
            json!(""),
            json!(null),
            json!(7),
            json!(["a b"]),
            json!(["m", 7]),
        ] {
            assert_eq!(
                read(&settings, |claims| claims["models"] = bad.clone()),
                Err(Refused::Models),
                "{bad}"
            );
        }
        assert_eq!(read(&settings, |_| ()), Err(Refused::Models));
        let holder = read(&settings, |claims| claims["models"] = json!("m n")).unwrap();
        assert_eq!(holder.models.len(), 2);
        settings.models_claim = None;
        settings.tenant_claim = Some("tid".into());
        settings.tenants = vec!["ours".into()];
        assert_eq!(read(&settings, |_| ()), Err(Refused::Tenant));
        assert_eq!(
            read(&settings, |claims| claims["tid"] = json!("theirs")),
            Err(Refused::Tenant)
        );
        assert!(read(&settings, |claims| claims["tid"] = json!("ours")).is_ok());
    }

    #[test]
    fn who_the_holder_is_may_stand_in_another_claim_and_must_be_a_name() {
        let mut settings = settings();
        settings.subject_claim = "https://hive.example/user".into();
        assert_eq!(read(&settings, |_| ()), Err(Refused::Subject));
        for bad in ["", " ", "a\u{1b}[2J", &"x".repeat(256)] {
            let set = |claims: &mut Value| claims["https://hive.example/user"] = json!(bad);
            assert_eq!(read(&settings, set), Err(Refused::Subject));
        }
        let set = |claims: &mut Value| claims["https://hive.example/user"] = json!("ann@example.org");
        assert_eq!(read(&settings, set).unwrap().subject, "ann@example.org");
    }

    #[test]
    fn a_name_that_comes_twice_makes_no_object() {
        for bad in [
            r#"{"a":1,"a":2}"#,
            r#"{"b":[{"a":1,"a":1}]}"#,
            r#"{"a":1,"\u0061":2}"#,
            "[]",
            "7",
            "{",
        ] {
            assert!(serde_json::from_str::<Object>(bad).is_err(), "{bad}");
        }
        let good = r#"{"a":[1,-2,0.5,"x",null,true,{"a":{}}]}"#;
        let read: Object = serde_json::from_str(good).unwrap();
        assert_eq!(Value::Object(read.0), serde_json::from_str::<Value>(good).unwrap());
    }
}

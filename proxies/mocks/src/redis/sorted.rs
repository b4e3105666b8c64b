//! Sorted sets.

use std::collections::HashMap;

use faultbox_redis::value::Value;

use super::store::{
    Answer, Args, Db, SYNTAX, bulk, count, float, glob, int, is, range, scanned, show_float,
};

type Members = Vec<(Vec<u8>, f64)>;

pub(super) fn run(db: &mut Db, name: &str, args: Args) -> Option<Answer> {
    let key = args.first().map(Vec::as_slice).unwrap_or_default();
    Some(match name {
        "ZADD" => add(db, args),
        "ZINCRBY" => float(&args[1]).and_then(|by| {
            db.change_sorted(key, |set| {
                let score = set.get(&args[2]).copied().unwrap_or(0.0) + by;
                if score.is_nan() {
                    return Err("ERR resulting score is not a number (NaN)".into());
                }
                set.insert(args[2].clone(), score);
                Ok(Value::Double(score))
            })
        }),
        "ZREM" => match db.sorted(key) {
            Err(e) => Err(e),
            Ok(None) => Ok(Value::Integer(0)),
            Ok(Some(_)) => db.change_sorted(key, |set| {
                let gone = args[1..].iter().filter(|m| set.remove(*m).is_some());
                Ok(count(gone.count()))
            }),
        },
        "ZCARD" => db.sorted(key).map(|s| count(s.map_or(0, HashMap::len))),
        "ZSCORE" => db
            .sorted(key)
            .map(|s| score(s.and_then(|s| s.get(&args[1])))),
        "ZMSCORE" => db.sorted(key).map(|s| {
            Value::Array(
                args[1..]
                    .iter()
                    .map(|m| score(s.and_then(|s| s.get(m))))
                    .collect(),
            )
        }),
        "ZRANK" | "ZREVRANK" => members(db, key).map(|mut all| {
            if name == "ZREVRANK" {
                all.reverse();
            }
            all.iter()
                .position(|(m, _)| *m == args[1])
                .map_or(Value::Null, count)
        }),
        "ZCOUNT" => Limits::read(&args[1], &args[2]).and_then(|limits| {
            let all = members(db, key)?;
            Ok(count(all.iter().filter(|(_, s)| limits.hold(*s)).count()))
        }),
        "ZRANGE" | "ZREVRANGE" | "ZRANGEBYSCORE" | "ZREVRANGEBYSCORE" => ranged(db, name, args),
        "ZPOPMIN" | "ZPOPMAX" => pop(db, name, args),
        "ZREMRANGEBYSCORE" => Limits::read(&args[1], &args[2]).and_then(|limits| {
            if db.sorted(key)?.is_none() {
                return Ok(Value::Integer(0));
            }
            db.change_sorted(key, |set| {
                let before = set.len();
                set.retain(|_, s| !limits.hold(*s));
                Ok(count(before - set.len()))
            })
        }),
        "ZREMRANGEBYRANK" => int(&args[1]).and_then(|from| {
            let to = int(&args[2])?;
            let all = members(db, key)?;
            let gone = &all[range(from, to, all.len())];
            if gone.is_empty() {
                return Ok(Value::Integer(0));
            }
            db.change_sorted(key, |set| {
                for (member, _) in gone {
                    set.remove(member);
                }
                Ok(count(gone.len()))
            })
        }),
        "ZSCAN" => scanned(&args[1..]).and_then(|pattern| {
            let mut found = vec![];
            for (member, score) in members(db, key)? {
                if pattern.is_none_or(|p| glob(p, &member)) {
                    found.push(bulk(member));
                    found.push(bulk(show_float(score)));
                }
            }
            Ok(Value::Array(vec![bulk("0"), Value::Array(found)]))
        }),
        _ => return None,
    })
}

fn score(score: Option<&f64>) -> Value {
    score.map_or(Value::Null, |s| Value::Double(*s))
}

/// The members by score, those of one score by their bytes.
fn members(db: &mut Db, key: &[u8]) -> Result<Members, String> {
    let mut all: Members = db
        .sorted(key)?
        .into_iter()
        .flatten()
        .map(|(m, s)| (m.clone(), *s))
        .collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
    Ok(all)
}

fn add(db: &mut Db, args: Args) -> Answer {
    let (mut absent, mut present, mut greater, mut less) = (false, false, false, false);
    let (mut changed_too, mut incr) = (false, false);
    let mut at = 1;
    while let Some(word) = args.get(at) {
        match () {
            () if is(word, "NX") => absent = true,
            () if is(word, "XX") => present = true,
            () if is(word, "GT") => greater = true,
            () if is(word, "LT") => less = true,
            () if is(word, "CH") => changed_too = true,
            () if is(word, "INCR") => incr = true,
            () => break,
        }
        at += 1;
    }
    let pairs = &args[at..];
    if pairs.is_empty() || !pairs.len().is_multiple_of(2) || (incr && pairs.len() != 2) {
        return Err(SYNTAX.to_owned());
    }
    if absent && (present || greater || less) || (greater && less) {
        return Err("ERR GT, LT, and/or NX options at the same time are not compatible".to_owned());
    }
    let pairs = pairs
        .chunks(2)
        .map(|pair| Ok((float(&pair[0])?, &pair[1])))
        .collect::<Result<Vec<_>, String>>()?;
    db.change_sorted(&args[0], |set| {
        let (mut new, mut changed) = (0, 0);
        let mut last = None;
        for (score, member) in pairs {
            let old = set.get(member).copied();
            let score = score + old.filter(|_| incr).unwrap_or(0.0);
            let holds = match old {
                None => !present,
                Some(old) => !absent && (!greater || score > old) && (!less || score < old),
            };
            if holds {
                new += usize::from(old.is_none());
                changed += usize::from(old != Some(score));
                set.insert(member.clone(), score);
                last = Some(score);
            }
        }
        Ok(match (incr, changed_too) {
            (true, _) => score(last.as_ref()),
            (false, true) => count(changed),
            (false, false) => count(new),
        })
    })
}

/// The bounds of a range of scores: `5`, `(5`, `-inf`.
struct Limits {
    low: (f64, bool),
    high: (f64, bool),
}

impl Limits {
    fn read(low: &[u8], high: &[u8]) -> Result<Limits, String> {
        let one = |text: &[u8]| {
            let (text, open) = match text.strip_prefix(b"(") {
                Some(rest) => (rest, true),
                None => (text, false),
            };
            float(text)
                .map(|n| (n, open))
                .map_err(|_| "ERR min or max is not a float".to_owned())
        };
        Ok(Limits {
            low: one(low)?,
            high: one(high)?,
        })
    }

    fn hold(&self, score: f64) -> bool {
        let above = score > self.low.0 || (!self.low.1 && score >= self.low.0);
        let below = score < self.high.0 || (!self.high.1 && score <= self.high.0);
        above && below
    }
}

fn ranged(db: &mut Db, name: &str, args: Args) -> Answer {
    let mut by_score = name.ends_with("BYSCORE");
    let mut reverse = name.starts_with("ZREV");
    let (mut scores, mut limit) = (false, None);
    let mut rest = &args[3..];
    while let [word, more @ ..] = rest {
        rest = more;
        match () {
            () if is(word, "WITHSCORES") => scores = true,
            () if is(word, "BYSCORE") && name == "ZRANGE" => by_score = true,
            () if is(word, "REV") && name == "ZRANGE" => reverse = true,
            () if is(word, "LIMIT") => match more {
                [from, n, more @ ..] => {
                    limit = Some((int(from)?, int(n)?));
                    rest = more;
                }
                _ => return Err(SYNTAX.to_owned()),
            },
            () => return Err(SYNTAX.to_owned()),
        }
    }
    if limit.is_some() && !by_score {
        return Err(
            "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX"
                .into(),
        );
    }
    let mut all = members(db, &args[0])?;
    if reverse {
        all.reverse();
    }
    let chosen: Members = if by_score {
        let (low, high) = match reverse {
            true => (&args[2], &args[1]),
            false => (&args[1], &args[2]),
        };
        let limits = Limits::read(low, high)?;
        let (skip, most) = limit.unwrap_or((0, -1));
        // A negative offset finds nothing, a negative count everything (redis.io, ZRANGE).
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        all.into_iter()
            .filter(|(_, s)| limits.hold(*s))
            .skip(skip)
            .take(most)
            .collect()
    } else {
        let (from, to) = (int(&args[1])?, int(&args[2])?);
        let range = range(from, to, all.len());
        all[range].to_vec()
    };
    Ok(listed(chosen, scores))
}

/// Members, with their scores if these are wanted: in pairs, as RESP3 has them; see
/// [`flat`].
fn listed(members: Members, scores: bool) -> Value {
    Value::Array(
        members
            .into_iter()
            .map(|(member, score)| match scores {
                true => Value::Array(vec![bulk(member), Value::Double(score)]),
                false => bulk(member),
            })
            .collect(),
    )
}

/// Members with scores are pairs in RESP3 and a flat list in RESP2: turns the first into the second.
pub(super) fn flat(name: &str, value: Value) -> Value {
    let scored =
        name.starts_with("ZRANGE") || name.starts_with("ZREVRANGE") || name.starts_with("ZPOP");
    match value {
        Value::Array(items) if scored => Value::Array(
            items
                .into_iter()
                .flat_map(|item| match item {
                    Value::Array(pair) => pair,
                    one => vec![one],
                })
                .collect(),
        ),
        other => other,
    }
}

fn pop(db: &mut Db, name: &str, args: Args) -> Answer {
    let most = match args.get(1) {
        None => 1,
        Some(n) => {
            usize::try_from(int(n)?).map_err(|_| "ERR value is out of range, must be positive")?
        }
    };
    let mut all = members(db, &args[0])?;
    if name == "ZPOPMAX" {
        all.reverse();
    }
    all.truncate(most);
    if !all.is_empty() {
        db.change_sorted(&args[0], |set| {
            for (member, _) in &all {
                set.remove(member);
            }
            Ok(())
        })?;
    }
    // Without a count it is one flat pair in both versions.
    match (args.get(1), all.pop()) {
        (None, Some((member, score))) => Ok(Value::Array(vec![bulk(member), Value::Double(score)])),
        (None, None) => Ok(Value::Array(vec![])),
        (Some(_), last) => {
            all.extend(last);
            Ok(listed(all, true))
        }
    }
}

//! `events assert_eventually assert_never assert_before`: what happened, whatever its type.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use faultbox_contract::{Dialect, Glob};
use starlark::collections::SmallMap;
use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::dict::DictRef;
use starlark::values::list::AllocList;
use starlark::values::none::NoneType;
use starlark::values::tuple::UnpackTuple;
use starlark::values::{Heap, Value};

use super::{mock_calls, names};
use crate::events::types::{self, Lack};
use crate::events::{Event, Untold};
use crate::plan::ServiceDecl;
use crate::spec::context::{RunState, context, count_assertion, running};
use crate::spec::convert::{alloc_json, kind_of};
use crate::spec::params::{callable, given, is_callable, span};
use crate::spec::problem::{Place, Problem};
use crate::spec::values::event::{EventValue, asks_for_untold, field};
use crate::spec::values::service::ServiceValue;

/// One condition on a field.
enum Test<'v> {
    /// Text is a glob on the field's text.
    Glob(Glob),
    /// The same on `method`: HTTP's are the same in any case, what begins with a slash is a path of gRPC's, whose case counts.
    Method { exact: Glob, folded: Glob },
    /// The same on `path`, wherever the links in it lead; and with what every path ends that it can match.
    Path { glob: Glob, tail: String },
    /// Anything else must be equal.
    Equal(Value<'v>),
    /// An object that has these entries, among others.
    Entries(Vec<(String, Test<'v>)>),
}

/// Which events are meant.
pub(super) struct Filter<'v> {
    fields: Vec<(String, Test<'v>)>,
    wheres: Vec<Value<'v>>,
    /// The value of `type=`, if it is text.
    kind: Option<String>,
    /// The value of `service=`, if it is text or a service, as a glob.
    service: Option<String>,
    text: String,
}

impl<'v> Filter<'v> {
    fn new(keywords: impl IntoIterator<Item = (String, Value<'v>)>) -> Result<Self, Problem> {
        let mut filter = Filter {
            fields: vec![],
            wheres: vec![],
            kind: None,
            service: None,
            text: String::new(),
        };
        let mut words = vec![];
        for (name, value) in keywords {
            words.push(format!("{name}={}", value.to_repr()));
            if name == "where" {
                filter.wheres.push(callable("where", value)?);
                continue;
            }
            if name == "type" {
                filter.kind = value.unpack_str().map(str::to_owned);
            }
            if name == "service" {
                filter.service = value.unpack_str().map(str::to_owned);
            }
            let test = if let Some(service) = ServiceValue::from_value(value) {
                let literal = escaped(&service.decl.name);
                let glob = Glob::new(&literal, Dialect::Text);
                if name == "service" {
                    filter.service = Some(literal);
                }
                glob.map_or(Test::Equal(value), Test::Glob)
            } else if let Some(text) = value.unpack_str() {
                let glob = |dialect| {
                    Glob::new(text, dialect)
                        .map_err(|e| Problem::param(&name, format!("`{name}`: {e}")))
                };
                match name.as_str() {
                    "method" => Test::Method {
                        exact: glob(Dialect::Text)?,
                        folded: glob(Dialect::TextNoCase)?,
                    },
                    "path" => Test::Path {
                        glob: glob(Dialect::Text)?,
                        tail: tail(text).to_owned(),
                    },
                    _ => Test::Glob(glob(Dialect::Text)?),
                }
            } else if matches!(name.as_str(), "type" | "service") && !value.is_none() {
                return Err(Problem::param(
                    &name,
                    format!("`{name}`: expected string, got {}", kind_of(value)),
                ));
            } else {
                Test::Equal(value)
            };
            filter.fields.push((name, test));
        }
        filter.text = if words.is_empty() {
            "any event".into()
        } else {
            words.join(", ")
        };
        Ok(filter)
    }

    /// From `events(where=..., type=...)`: keywords, and predicates by position.
    fn from_call(
        positional: &[Value<'v>],
        keywords: SmallMap<String, Value<'v>>,
    ) -> Result<Self, Problem> {
        let mut filter = Filter::new(keywords)?;
        for (i, value) in positional.iter().enumerate() {
            if !is_callable(*value) {
                return Err(Problem::new(
                    Place::Positional(i),
                    format!("expected a function of an event, got {}", kind_of(*value)),
                )
                .help(
                    "filters are keywords: type=\"syscall\", service=\"db\", where=lambda e: ...",
                ));
            }
            filter.wheres.push(*value);
        }
        Ok(filter)
    }

    /// From `calls(mock, path=, headers={"x": "a*"})`: a dict names some of a field's entries.
    pub(super) fn with_entries(keywords: SmallMap<String, Value<'v>>) -> Result<Self, Problem> {
        let mut filter = Filter::new(keywords)?;
        for (name, test) in &mut filter.fields {
            if let Test::Equal(value) = test
                && let Some(dict) = DictRef::from_value(*value)
            {
                *test = entries(name, &dict)?;
            }
        }
        Ok(filter)
    }

    /// Does it let everything through?
    pub(super) fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.wheres.is_empty()
    }

    /// As it was written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// From `first={"type": "syscall"}`, or a function.
    fn from_value(name: &str, value: Value<'v>) -> Result<Self, Problem> {
        if is_callable(value) {
            return Filter::new([("where".to_owned(), value)]);
        }
        let Some(dict) = DictRef::from_value(value) else {
            return Err(Problem::param(
                name,
                format!(
                    "`{name}`: expected a dict of filters or a function, got {}",
                    kind_of(value)
                ),
            ));
        };
        let mut keywords = vec![];
        for (i, (key, value)) in dict.iter().enumerate() {
            let Some(key) = key.unpack_str() else {
                return Err(Problem::new(
                    Place::Item(name.to_owned(), i),
                    format!("`{name}`: a field's name is a string"),
                ));
            };
            keywords.push((key.to_owned(), value));
        }
        Filter::new(keywords).map_err(|p| Problem {
            place: Place::Param(name.to_owned()),
            ..p
        })
    }

    pub(super) fn matches(
        &self,
        eval: &mut Evaluator<'v, '_, '_>,
        event: &Arc<Event>,
    ) -> starlark::Result<bool> {
        Ok(self.judge(eval, event)? == Answer::Yes)
    }

    fn judge(
        &self,
        eval: &mut Evaluator<'v, '_, '_>,
        event: &Arc<Event>,
    ) -> starlark::Result<Answer> {
        let heap = eval.heap();
        let mut answer = Answer::Yes;
        // Who asks for an errno of whatever kind of event does not mean connections.
        let counts = |lack: &Lack| *lack == Lack::Path || self.kind.is_some();
        let lack = Lack::of(event).filter(counts);
        for (name, test) in &self.fields {
            let holds = match test {
                Test::Path { tail, .. } if lack == Some(Lack::Path) => {
                    if !may_end(event, tail) {
                        return Ok(Answer::No);
                    }
                    answer = Answer::Unknown(Lack::Path);
                    continue;
                }
                Test::Glob(_) if lack == Some(Lack::Errno) && name == "errno" => {
                    answer = Answer::Unknown(Lack::Errno);
                    continue;
                }
                // What it leads to is as good as what was written.
                Test::Path { glob, .. } => ["path", "resolved"]
                    .iter()
                    .any(|name| glob_holds(glob, &field(event, name))),
                test => test.holds(heap, &field(event, name))?,
            };
            if !holds {
                return Ok(Answer::No);
            }
        }
        for function in &self.wheres {
            let value = heap.alloc(EventValue(event.clone()));
            let (judged, asked) = asks_for_untold(|| eval.eval_function(*function, &[value], &[]));
            match (judged?.to_bool(), asked.filter(counts)) {
                (true, _) => {}
                (false, Some(lack)) => answer = Answer::Unknown(lack),
                (false, None) => return Ok(Answer::No),
            }
        }
        Ok(answer)
    }
}

/// Does an event pass?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
    /// It depends on what nobody could tell.
    Unknown(Lack),
}

/// What the pattern ends with literally.
fn tail(pattern: &str) -> &str {
    pattern
        .rfind(['*', '?', '[', ']', '{', '}', '\\'])
        .map_or(pattern, |at| &pattern[at + 1..])
}

/// May the whole path of this event, of which only what was written is known, end so?
fn may_end(event: &Event, tail: &str) -> bool {
    let written = event.fields.get("written").and_then(|w| w.as_str());
    let name = written.and_then(|w| Path::new(w).file_name()?.to_str());
    name.is_none_or(|name| {
        let end = format!("/{name}");
        end.ends_with(tail) || tail.ends_with(&end)
    })
}

fn glob_holds(glob: &Glob, actual: &serde_json::Value) -> bool {
    match actual {
        serde_json::Value::String(text) => glob.matches(text),
        serde_json::Value::Null => false,
        // A number or a truth value is matched as it is written.
        other => glob.matches(&other.to_string()),
    }
}

/// Tests on some entries of an object.
fn entries<'v>(name: &str, dict: &DictRef<'v>) -> Result<Test<'v>, Problem> {
    let mut tests = vec![];
    for (i, (key, value)) in dict.iter().enumerate() {
        let Some(key) = key.unpack_str() else {
            return Err(Problem::new(
                Place::Item(name.to_owned(), i),
                format!("`{name}`: the name of an entry is a string"),
            ));
        };
        let test = match (value.unpack_str(), DictRef::from_value(value)) {
            (Some(text), _) => Test::Glob(
                Glob::new(text, Dialect::Text)
                    .map_err(|e| Problem::param(name, format!("`{name}`: {e}")))?,
            ),
            (None, Some(inner)) => entries(name, &inner)?,
            (None, None) => Test::Equal(value),
        };
        tests.push((key.to_owned(), test));
    }
    Ok(Test::Entries(tests))
}

impl<'v> Test<'v> {
    fn holds(&self, heap: Heap<'v>, actual: &serde_json::Value) -> starlark::Result<bool> {
        Ok(match self {
            Test::Glob(glob) | Test::Path { glob, .. } => glob_holds(glob, actual),
            Test::Method { exact, folded } => {
                actual
                    .as_str()
                    .is_some_and(|text| match text.starts_with('/') {
                        true => exact.matches(text),
                        false => folded.matches(text),
                    })
            }
            Test::Equal(expected) => alloc_json(heap, actual).equals(*expected)?,
            Test::Entries(tests) => {
                for (name, test) in tests {
                    let entry = actual.get(name).unwrap_or(&serde_json::Value::Null);
                    if !test.holds(heap, entry)? {
                        return Ok(false);
                    }
                }
                actual.is_object()
            }
        })
    }
}

/// A glob that matches this text only.
fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let special = "*?[]{}\\".contains(c);
            special.then_some('\\').into_iter().chain([c])
        })
        .collect()
}

/// How far a search has come.
#[derive(Debug, Default)]
struct Search {
    /// The last event that was looked at.
    seq: u64,
    /// Those among them that might have been meant.
    untold: Untold,
}

/// The next event that matches.
fn find<'v>(
    eval: &mut Evaluator<'v, '_, '_>,
    run: &RunState,
    filter: &Filter<'v>,
    search: &mut Search,
) -> starlark::Result<Option<Arc<Event>>> {
    for event in run.host.events().since(search.seq) {
        search.seq = event.seq;
        match filter.judge(eval, &event)? {
            Answer::Yes => return Ok(Some(event)),
            Answer::Unknown(lack) => search.untold.count(lack),
            Answer::No => {}
        }
    }
    Ok(None)
}

/// Looks until an event matches or the time is up.
fn wait_for<'v>(
    eval: &mut Evaluator<'v, '_, '_>,
    run: &RunState,
    filter: &Filter<'v>,
    search: &mut Search,
    deadline: Instant,
) -> starlark::Result<Option<Arc<Event>>> {
    loop {
        if let Some(event) = find(eval, run, filter, search)? {
            return Ok(Some(event));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        let seen = search.seq;
        // Short turns: where the log is full nothing grows any more, but the deadline still comes.
        run.blocking(|| run.host.events().wait_past(seen, deadline));
        if run.host.events().dropped() > 0 {
            run.blocking(|| {
                std::thread::sleep(
                    Duration::from_millis(10)
                        .min(deadline.saturating_duration_since(Instant::now())),
                );
            });
        }
    }
}

/// Notes that the test depends on events. What nobody could have seen is neither there nor absent, and what cannot be is a mistake.
fn observable<'v>(
    eval: &Evaluator<'v, '_, '_>,
    run: &RunState,
    filter: &Filter<'v>,
) -> Result<(), Problem> {
    run.transcript.asked_events.store(true, Ordering::Relaxed);
    let world = context(eval)?.world;
    let types = match &filter.kind {
        Some(kind) => names::types(kind)?,
        None => types::all().collect(),
    };
    if types.iter().any(|t| types::SYSTEM_CALLS.contains(t)) {
        run.transcript.asked_calls.store(true, Ordering::Relaxed);
    }
    if filter.kind.is_some() {
        for kind in types.iter().filter(|t| types::FROM_KERNEL.contains(t)) {
            run.host.observes(kind).map_err(Problem::from)?;
        }
    }
    let named = match &filter.service {
        Some(text) => Some(names::services(world, text)?),
        None => None,
    };
    let all = names::services(world, "*").unwrap_or_default();
    names::check_streams(
        &types,
        named.as_ref().unwrap_or(&all),
        filter.service.as_deref(),
    )?;
    let fields = names::fields(world, &types, named.as_deref());
    let what = match &filter.kind {
        Some(kind) => format!("event of type `{kind}`"),
        None => "event".to_owned(),
    };
    for (name, _) in &filter.fields {
        names::check_field(name, &fields, &what)?;
    }
    Ok(())
}

/// The same for the calls of a mock, or of one of its interfaces.
pub(super) fn observable_calls<'v>(
    eval: &Evaluator<'v, '_, '_>,
    run: &RunState,
    filter: &Filter<'v>,
    mock: &ServiceDecl,
    interface: Option<&str>,
) -> Result<(), Problem> {
    run.transcript.asked_events.store(true, Ordering::Relaxed);
    let world = context(eval)?.world;
    let meant = mock
        .interfaces
        .iter()
        .filter(|i| interface.is_none_or(|name| i.name == name));
    let protocols: Vec<_> = meant
        .filter_map(|i| Some(world.protocol(i.protocol)?.doc()))
        .collect();
    let fields = types::fields(mock_calls::KIND, &protocols);
    if let Some(kind) = &filter.kind
        && !names::types(kind)?.contains(&mock_calls::KIND)
    {
        let message = format!("a call is an event of type `{}`", mock_calls::KIND);
        return Err(Problem::param("type", message).help("drop `type=`"));
    }
    if let Some(service) = &filter.service {
        names::services(world, service)?;
    }
    let what = match interface {
        Some(interface) => format!("call of {}.{interface}", mock.name),
        None => format!("call of {}", mock.name),
    };
    for (name, _) in &filter.fields {
        names::check_field(name, &fields, &what)?;
    }
    Ok(())
}

/// Where events were lost, absence proves nothing.
pub(super) fn lost(run: &RunState, what: &str) -> Result<(), Problem> {
    let losses = run.host.events().losses();
    match losses.missed(run.transcript.asked()) {
        None => Ok(()),
        Some((n, why)) => Err(Problem::undecided(format!(
            "{n} events were lost, so {what} cannot be said: {why}"
        ))
        .help("observe fewer streams, name the type of event that is asked for, or have the services do less at a time")),
    }
}

/// The same where something about an event could not be told.
fn told(search: &Search, what: &str) -> Result<(), Problem> {
    let Some(words) = search.untold.words() else {
        return Ok(());
    };
    let help = match search.untold.paths {
        0 => {
            "a connection that never sent a packet has none to tell, and neither has any where the run says so above; ask for `ok=False`, or name more of what is meant"
        }
        _ => {
            "processes that end at once after opening a file by a relative path leave only that: events(type=\"open\") has it as `.written`; use absolute paths, or name more of what is meant"
        }
    };
    Err(Problem::undecided(format!("{words}, so {what} cannot be said")).help(help))
}

fn within(value: Option<Value>) -> Result<Duration, Problem> {
    given(value).map_or(Ok(Duration::ZERO), |v| span("within", v))
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// The events so far that pass every filter: `events(type="proxy", service="db", query="INSERT*")`, `events(where=lambda e: ...)`.
    ///
    /// Text is a glob on the field, any other value must be equal; an event has `.seq .time .type .service` and its fields, and a
    /// missing field is None.
    fn events<'v>(
        #[starlark(args)] predicates: UnpackTuple<Value<'v>>,
        #[starlark(kwargs)] filters: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let run = running(eval, "events")?;
        let filter = Filter::from_call(&predicates.items, filters)?;
        observable(eval, run, &filter)?;
        let mut found = vec![];
        let mut search = Search::default();
        while let Some(event) = find(eval, run, &filter, &mut search)? {
            found.push(eval.heap().alloc(EventValue(event)));
        }
        run.transcript.note_untold(search.untold);
        Ok(eval.heap().alloc(AllocList(found)))
    }

    /// Fails the test unless an event passes the filters now, or within `within`; returns it.
    fn assert_eventually<'v>(
        #[starlark(args)] predicates: UnpackTuple<Value<'v>>,
        #[starlark(require = named)] within: Option<Value<'v>>,
        #[starlark(kwargs)] filters: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let run = running(eval, "assert_eventually")?;
        count_assertion(run);
        let within = self::within(within)?;
        let filter = Filter::from_call(&predicates.items, filters)?;
        observable(eval, run, &filter)?;
        let mut search = Search::default();
        match wait_for(eval, run, &filter, &mut search, Instant::now() + within)? {
            Some(event) => Ok(eval.heap().alloc(EventValue(event))),
            None => {
                lost(run, "whether it happened")?;
                told(&search, "whether it happened")?;
                Err(Problem::assertion("no such event")
                    .compared(
                        format!("an event with {}", filter.text),
                        format!("none among {} events", search.seq),
                    )
                    .into())
            }
        }
    }

    /// Fails the test if an event passes the filters now, or within `within`.
    fn assert_never<'v>(
        #[starlark(args)] predicates: UnpackTuple<Value<'v>>,
        #[starlark(require = named)] within: Option<Value<'v>>,
        #[starlark(kwargs)] filters: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        let run = running(eval, "assert_never")?;
        count_assertion(run);
        let within = self::within(within)?;
        let filter = Filter::from_call(&predicates.items, filters)?;
        observable(eval, run, &filter)?;
        let mut search = Search::default();
        if let Some(event) = wait_for(eval, run, &filter, &mut search, Instant::now() + within)? {
            return Err(Problem::assertion("such an event happened")
                .compared(
                    format!("no event with {}", filter.text),
                    EventValue(event).to_string(),
                )
                .into());
        }
        lost(run, "that it never happened")?;
        told(&search, "that it never happened")?;
        Ok(NoneType)
    }

    /// Fails the test unless the first event that passes `first` comes before the first that passes `then`:
    /// `assert_before(first={"type": "syscall", "service": "db"}, then=lambda e: e.type == "step")`.
    fn assert_before<'v>(
        #[starlark(require = named)] first: Value<'v>,
        #[starlark(require = named)] then: Value<'v>,
        #[starlark(require = named)] within: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        let run = running(eval, "assert_before")?;
        count_assertion(run);
        let deadline = Instant::now() + self::within(within)?;
        let mut found = vec![];
        for (name, value) in [("first", first), ("then", then)] {
            let filter = Filter::from_value(name, value)?;
            observable(eval, run, &filter)?;
            let mut search = Search::default();
            let event = wait_for(eval, run, &filter, &mut search, deadline)?;
            // One before it may have been the first.
            told(&search, "which came first")?;
            match event {
                Some(event) => found.push((event, filter.text)),
                None => {
                    lost(run, "which came first")?;
                    return Err(Problem::assertion(format!("no event passes `{name}`"))
                        .compared(
                            format!("an event with {}", filter.text),
                            format!("none among {} events", search.seq),
                        )
                        .into());
                }
            }
        }
        if let [(a, a_text), (b, b_text)] = found.as_slice()
            && a.seq >= b.seq
        {
            return Err(Problem::assertion("the order is the other way round")
                .compared(
                    format!("{a_text}, then {b_text}"),
                    format!("{} then {}", EventValue(b.clone()), EventValue(a.clone())),
                )
                .into());
        }
        Ok(NoneType)
    }
}

/// Adds them.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}

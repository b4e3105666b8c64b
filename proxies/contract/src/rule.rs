//! Rules: as written, as checked against a protocol's tables, and as armed on a running proxy.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::args::Arg;
use crate::clock;
use crate::doc::{ActionDoc, COMMON_PARAMS, Class, ParamDoc, ProtocolDoc};
use crate::duration;
use crate::protocol::{EventSink, ProxyEvent};
use crate::trigger::{Trigger, TriggerSpec};

/// A rule as the spec wrote it: `error(query="INSERT*", message="disk full")`.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleSpec {
    /// The builtin's name.
    pub action: String,
    /// Its keywords in the order written.
    pub args: Vec<(String, Arg)>,
}

/// Why a rule or a step was refused; the language turns it into a diagnostic that underlines `arg`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ArgError {
    /// What is wrong, a lower-case fragment.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The keyword at fault.
    pub arg: Option<String>,
}

impl ArgError {
    /// An error about the keyword `arg`.
    pub fn new(arg: &str, message: impl Into<String>) -> ArgError {
        ArgError {
            message: message.into(),
            hint: None,
            arg: Some(arg.to_owned()),
        }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> ArgError {
        self.hint = Some(hint.into());
        self
    }
}

/// A rule that a protocol's tables have accepted: every keyword known, every value in its kind's shape.
#[derive(Debug, Clone)]
pub struct CheckedRule {
    /// The table's entry.
    pub action: &'static ActionDoc,
    /// The matchers and the action's own keywords; the ones left out are absent.
    pub args: Vec<(&'static str, Arg)>,
    /// When it fires.
    pub trigger: TriggerSpec,
    /// Its name in reports.
    pub label: Option<String>,
    /// Only requests of this service.
    pub source: Option<String>,
    /// The rule as a person writes it, e.g. `error(query="INSERT*")`.
    pub text: String,
}

impl CheckedRule {
    /// The value of `name`, if it was given.
    pub fn get(&self, name: &str) -> Option<&Arg> {
        self.args.iter().find(|(n, _)| *n == name).map(|(_, a)| a)
    }

    /// The text of `name`, if it was given as text.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Arg::as_str)
    }

    /// The integer of `name`, if it was given as one.
    pub fn int_of(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(Arg::as_int)
    }
}

impl ProtocolDoc {
    /// Checks a rule against this protocol's tables.
    ///
    /// # Errors
    /// An action, matcher or keyword that the protocol does not have (with the list of those it has and the nearest one), a
    /// missing keyword, or a value of the wrong kind.
    pub fn check_rule(&self, rule: &RuleSpec) -> Result<CheckedRule, ArgError> {
        let Some(action) = self.actions.iter().find(|a| a.name == rule.action) else {
            let names: Vec<_> = self.actions.iter().map(|a| a.name).collect();
            return Err(ArgError {
                message: format!("protocol {} has no `{}` rule", self.name, rule.action),
                hint: Some(format!("its rules are {}", names.join(", "))),
                arg: None,
            });
        };
        let matchers: &[ParamDoc] = if action.matched { self.matchers } else { &[] };
        // An action's own keyword hides a matcher of the same name: in HTTP, `error(body=…)` is the answer's body.
        let own: Vec<&'static ParamDoc> = action
            .params
            .iter()
            .chain(
                matchers
                    .iter()
                    .filter(|m| action.params.iter().all(|p| p.name != m.name)),
            )
            .collect();
        let mut checked = CheckedRule {
            action,
            args: vec![],
            trigger: TriggerSpec::default(),
            label: None,
            source: None,
            text: show_rule(rule),
        };
        for (name, arg) in &rule.args {
            if matches!(arg, Arg::None) {
                continue;
            }
            let value = |p: &ParamDoc| {
                p.kind
                    .check(arg.clone())
                    .map_err(|e| ArgError::new(name, format!("`{name}`: {e}")))
            };
            if let Some(param) = own.iter().find(|p| p.name == name) {
                checked.args.push((param.name, value(param)?));
            } else if let Some(param) = COMMON_PARAMS.iter().find(|p| p.name == name) {
                set_common(&mut checked, param, arg)?;
            } else {
                let known: Vec<&str> = own
                    .iter()
                    .map(|p| p.name)
                    .chain(COMMON_PARAMS.iter().map(|p| p.name))
                    .collect();
                let message = format!(
                    "`{}` on protocol {} has no keyword `{name}`",
                    action.name, self.name
                );
                return Err(ArgError::new(name, message).hint(nearest_hint(name, &known)));
            }
        }
        if let Some(why) = checked.trigger.never() {
            return Err(ArgError::new("nth", why).hint("count from the first request that matches"));
        }
        if let Some(missing) = own
            .iter()
            .find(|p| p.required && checked.get(p.name).is_none())
        {
            return Err(ArgError {
                message: format!(
                    "`{}` needs `{}=`: {}",
                    action.name, missing.name, missing.doc
                ),
                hint: Some(format!("it takes {}", missing.kind.describe())),
                arg: None,
            });
        }
        Ok(checked)
    }
}

fn set_common(rule: &mut CheckedRule, param: &ParamDoc, arg: &Arg) -> Result<(), ArgError> {
    let wrong = |e: String| ArgError::new(param.name, format!("`{}`: {e}", param.name));
    match (param.name, arg) {
        ("source", Arg::Service(name) | Arg::Str(name)) => rule.source = Some(name.clone()),
        ("probability", Arg::Float(p)) => {
            rule.trigger.probability = Some(duration::check_probability(*p).map_err(wrong)?)
        }
        ("probability", Arg::Int(p)) => {
            rule.trigger.probability = Some(duration::check_probability(*p as f64).map_err(wrong)?)
        }
        ("probability", Arg::Str(p)) => {
            rule.trigger.probability = Some(duration::parse_probability(p).map_err(wrong)?)
        }
        ("probability", other) => {
            return Err(wrong(format!(
                "expected a float in 0..1 or \"20%\", got {}",
                other.type_name()
            )));
        }
        (name, arg) => {
            let checked = param.kind.check(arg.clone()).map_err(wrong)?;
            let count = checked.as_int().map(|i| i as u64);
            match name {
                "nth" => rule.trigger.nth = count,
                "after" => rule.trigger.after = count,
                "every" => rule.trigger.every = count,
                "times" => rule.trigger.times = count,
                "label" => rule.label = checked.as_str().map(str::to_owned),
                _ => {
                    return Err(wrong(format!(
                        "expected {}, got {}",
                        param.kind.describe(),
                        arg.type_name()
                    )));
                }
            }
        }
    }
    Ok(())
}

/// A hint that lists the known names, led by the nearest one when it is near.
pub fn nearest_hint(name: &str, known: &[&str]) -> String {
    let list = known.join(", ");
    match nearest(name, known) {
        Some(best) => format!("did you mean `{best}`? It takes {list}"),
        None => format!("it takes {list}"),
    }
}

/// The known name that `name` was probably meant to be.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|k| {
            (
                strsim::damerau_levenshtein(&name.to_lowercase(), &k.to_lowercase()),
                *k,
            )
        })
        .min()
        .filter(|(distance, k)| *distance <= 1 + k.len().min(name.len()) / 4)
        .map(|(_, k)| k)
}

/// The known name that `name` is one slip of the finger away from: a letter too many, too few, another, or two in the wrong order; or only
/// its letter case.
pub fn slip_of<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |k: &str| strsim::damerau_levenshtein(&name.to_lowercase(), &k.to_lowercase());
    known
        .iter()
        .map(|k| (distance(k), *k))
        .filter(|(d, _)| *d <= 1)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

fn show_rule(rule: &RuleSpec) -> String {
    let args: Vec<String> = rule
        .args
        .iter()
        .filter(|(_, a)| !matches!(a, Arg::None))
        .map(|(n, a)| format!("{n}={}", show_arg(a)))
        .collect();
    format!("{}({})", rule.action, args.join(", "))
}

fn show_arg(arg: &Arg) -> String {
    match arg {
        Arg::Bool(b) => if *b { "True" } else { "False" }.into(),
        Arg::Service(s) => s.clone(),
        Arg::Duration(d) => format!("\"{}\"", duration::show(*d)),
        other => {
            let mut text = other.to_json().to_string();
            if let Some((end, _)) = text.char_indices().nth(SHOWN) {
                text.truncate(end);
                text.push('…');
            }
            text
        }
    }
}

/// The most characters of one argument that a rule's text shows: the text is part of every event, and a body may have megabytes.
const SHOWN: usize = 200;

/// A rule in force on a proxy.
pub struct ArmedRule {
    /// Unique within the test; grows with every arming.
    pub id: u64,
    /// What the spec said.
    pub rule: Arc<CheckedRule>,
    /// What [`Protocol::compile`](crate::Protocol::compile) made of it; the protocol downcasts it.
    pub compiled: Arc<dyn Any + Send + Sync>,
    /// The fault's name, for events.
    pub fault: String,
    trigger: Trigger,
    shadowed: AtomicU64,
    lifted: watch::Sender<bool>,
}

impl ArmedRule {
    /// Puts a checked and compiled rule together; `seed` as for [`Trigger::new`].
    pub fn new(
        id: u64,
        fault: String,
        rule: Arc<CheckedRule>,
        compiled: Arc<dyn Any + Send + Sync>,
        seed: u64,
    ) -> ArmedRule {
        let trigger = Trigger::new(rule.trigger.clone(), seed);
        ArmedRule {
            id,
            rule,
            compiled,
            fault,
            trigger,
            shadowed: AtomicU64::new(0),
            lifted: watch::Sender::new(false),
        }
    }

    /// How many requests it has decided (or delayed, or modified).
    pub fn hits(&self) -> u64 {
        // In this order: a request that is decided between the two looks must not count as shadowed before it has fired.
        let shadowed = self.shadowed();
        self.trigger.fired().saturating_sub(shadowed)
    }

    /// How many requests it would have decided had no later rule done so.
    pub fn shadowed(&self) -> u64 {
        self.shadowed.load(Ordering::Relaxed)
    }

    /// How many requests its matchers have selected, fired or not.
    pub fn matched(&self) -> u64 {
        self.trigger.matched()
    }

    /// Has the rule been lifted? What it did to a transfer that is still going on ends then.
    pub fn is_lifted(&self) -> bool {
        *self.lifted.borrow()
    }

    /// Completes when the rule is lifted; a sleeping delay ends then.
    pub async fn until_lifted(&self) {
        let mut watch = self.lifted.subscribe();
        // The sender lives in self, so the channel cannot close under this borrow.
        let _ = watch.wait_for(|lifted| *lifted).await;
    }

    /// Sleeps for `how_long`, or until the rule is lifted.
    pub async fn delay(&self, how_long: Duration) {
        tokio::select! {
            () = clock::sleep(how_long) => {}
            () = self.until_lifted() => {}
        }
    }
}

impl std::fmt::Debug for ArmedRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{} {}", self.id, self.rule.text)
    }
}

/// The rules in force on one interface, oldest first. Reading is wait-free; arming replaces the list.
#[derive(Debug, Default)]
pub struct RuleSet(ArcSwap<Vec<Arc<ArmedRule>>>);

/// What fired on one request.
#[derive(Debug, Default)]
pub struct Fired {
    /// Delays, to be served one after another.
    pub delays: Vec<Arc<ArmedRule>>,
    /// Modifiers, oldest first.
    pub modifiers: Vec<Arc<ArmedRule>>,
    /// What decides the request.
    pub terminal: Option<Arc<ArmedRule>>,
}

impl Fired {
    /// Did nothing fire?
    pub fn is_empty(&self) -> bool {
        self.delays.is_empty() && self.modifiers.is_empty() && self.terminal.is_none()
    }
}

impl RuleSet {
    /// Is no rule armed? The proxies' fast path.
    pub fn is_empty(&self) -> bool {
        self.0.load().is_empty()
    }

    /// The rules now in force, oldest first.
    pub fn load(&self) -> Arc<Vec<Arc<ArmedRule>>> {
        self.0.load_full()
    }

    /// Puts a rule in force.
    pub fn arm(&self, rule: Arc<ArmedRule>) {
        self.0.rcu(|rules| {
            let mut rules = Vec::clone(rules);
            rules.push(rule.clone());
            rules
        });
    }

    /// Lifts exactly the rule with this id and wakes the delays that sleep on it.
    pub fn lift(&self, id: u64) {
        let before = self.0.rcu(|rules| {
            rules
                .iter()
                .filter(|r| r.id != id)
                .cloned()
                .collect::<Vec<_>>()
        });
        for rule in before.iter().filter(|r| r.id == id) {
            rule.lifted.send_replace(true);
        }
    }

    /// Asks every armed rule about one request: `matches` selects (by matchers and source), the trigger decides, and each rule that
    /// fires is one event. `fields` are the request's own, e.g. `{"query": "INSERT …"}`; of a delay, `delay_ms` is added.
    pub fn evaluate(
        &self,
        matches: impl Fn(&ArmedRule) -> bool,
        sink: &dyn EventSink,
        fields: impl FnOnce() -> Value,
    ) -> Fired {
        self.evaluate_with(matches, sink, fields, |_| Value::Null)
    }

    /// The same, with fields that depend on the rule: what the protocol's `outcome` says of it, e.g. `{"status": 503}`.
    pub fn evaluate_with(
        &self,
        matches: impl Fn(&ArmedRule) -> bool,
        sink: &dyn EventSink,
        fields: impl FnOnce() -> Value,
        outcome: impl Fn(&ArmedRule) -> Value,
    ) -> Fired {
        let mut fired = Fired::default();
        let rules = self.0.load();
        if rules.is_empty() {
            return fired;
        }
        for rule in rules.iter().filter(|r| matches(r)) {
            // Every matching rule draws, shadowed or not: what one rule decides must not depend on the others.
            if !rule.trigger.decide() {
                continue;
            }
            match rule.rule.action.class {
                Class::Delay => fired.delays.push(rule.clone()),
                Class::Modifier => fired.modifiers.push(rule.clone()),
                Class::Terminal => {
                    if let Some(older) = fired.terminal.replace(rule.clone()) {
                        older.shadowed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        if !fired.is_empty() {
            let fields = fields();
            for rule in fired
                .delays
                .iter()
                .chain(&fired.modifiers)
                .chain(&fired.terminal)
            {
                let mut event = json!({"fault": rule.fault, "rule": rule.rule.text, "action": rule.rule.action.name});
                if let (Some(event), Some(fields)) = (event.as_object_mut(), fields.as_object()) {
                    event.extend(fields.clone());
                    if let Value::Object(outcome) = outcome(rule) {
                        event.extend(outcome);
                    }
                    if let Some(delay) = rule.rule.get("delay").and_then(Arg::as_duration) {
                        event.insert("delay_ms".into(), milliseconds(delay));
                    }
                    if let Some(label) = &rule.rule.label {
                        event.insert("label".into(), label.as_str().into());
                    }
                }
                sink.emit(ProxyEvent {
                    kind: "proxy",
                    fields: event,
                });
            }
        }
        fired
    }
}

/// Whole milliseconds are an integer, as a spec writes them.
fn milliseconds(time: Duration) -> Value {
    match u64::try_from(time.as_millis()) {
        Ok(whole) if Duration::from_millis(whole) == time => whole.into(),
        _ => (time.as_secs_f64() * 1e3).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doc::{Kind, common};
    use crate::glob::Dialect;

    static DOC: ProtocolDoc = ProtocolDoc {
        name: "toy",
        aliases: &[],
        summary: "",
        matchers: &[ParamDoc::opt("query", Kind::Glob(Dialect::Text), "")],
        actions: &[
            common::DELAY,
            ActionDoc {
                name: "error",
                class: Class::Terminal,
                matched: true,
                params: &[ParamDoc::opt("message", Kind::Text, "")],
                summary: "",
            },
        ],
        steps: &[],
    };

    struct Null;
    impl EventSink for Null {
        fn emit(&self, _: ProxyEvent) {}
    }

    fn rule(action: &str, args: &[(&str, Arg)]) -> RuleSpec {
        RuleSpec {
            action: action.into(),
            args: args
                .iter()
                .map(|(n, a)| ((*n).to_owned(), a.clone()))
                .collect(),
        }
    }

    fn text(s: &str) -> Arg {
        Arg::Str(s.into())
    }

    fn armed(id: u64, spec: &RuleSpec) -> Arc<ArmedRule> {
        Arc::new(ArmedRule::new(
            id,
            "f".into(),
            Arc::new(DOC.check_rule(spec).unwrap()),
            Arc::new(()),
            1,
        ))
    }

    #[test]
    fn misuse_is_refused_with_the_list() {
        let e = DOC
            .check_rule(&rule("error", &[("qery", text("x"))]))
            .unwrap_err();
        assert_eq!(e.message, "`error` on protocol toy has no keyword `qery`");
        assert!(
            e.hint
                .unwrap()
                .starts_with("did you mean `query`? It takes message, query, probability")
        );
        assert_eq!(
            DOC.check_rule(&rule("drop", &[]))
                .unwrap_err()
                .hint
                .unwrap(),
            "its rules are delay, error"
        );
        assert!(
            DOC.check_rule(&rule("error", &[("query", Arg::Int(5))]))
                .unwrap_err()
                .message
                .contains("expected glob, got int")
        );
        assert!(
            DOC.check_rule(&rule("delay", &[]))
                .unwrap_err()
                .message
                .contains("needs `delay=`")
        );
        assert!(
            DOC.check_rule(&rule("error", &[("probability", text("120%"))]))
                .is_err()
        );
        assert_eq!(
            DOC.check_rule(&rule("error", &[("probability", text("1%"))]))
                .unwrap()
                .trigger
                .probability,
            Some(0.01)
        );
    }

    #[test]
    fn an_actions_own_keyword_hides_the_matcher() {
        static HIDING: ProtocolDoc = ProtocolDoc {
            matchers: &[ParamDoc::opt("body", Kind::Glob(Dialect::Text), "")],
            actions: &[ActionDoc {
                name: "error",
                class: Class::Terminal,
                matched: true,
                params: &[ParamDoc::opt("body", Kind::Body, "")],
                summary: "",
            }],
            ..DOC
        };
        let dict = Arg::Json(json!({"a": 1}));
        let checked = HIDING.check_rule(&rule("error", &[("body", dict.clone())]));
        assert_eq!(checked.unwrap().args, [("body", dict)]);
    }

    #[test]
    fn rules_stack_and_the_latest_terminal_decides() {
        let set = RuleSet::default();
        let (a, b, d) = (
            armed(1, &rule("error", &[])),
            armed(2, &rule("error", &[])),
            armed(3, &rule("delay", &[("delay", Arg::Int(1))])),
        );
        for r in [&a, &b, &d] {
            set.arm(r.clone());
        }
        let fired = set.evaluate(|_| true, &Null, || json!({}));
        assert_eq!((fired.terminal.unwrap().id, fired.delays.len()), (2, 1));
        assert_eq!((a.hits(), a.shadowed(), b.hits(), d.hits()), (0, 1, 1, 1));
        set.lift(2);
        assert_eq!(
            set.evaluate(|_| true, &Null, || json!({}))
                .terminal
                .unwrap()
                .id,
            1
        );
        assert_eq!((a.hits(), b.hits()), (1, 1));
    }

    #[test]
    fn a_long_argument_is_cut_in_the_text() {
        let checked = DOC.check_rule(&rule("error", &[("message", text(&"é".repeat(1 << 20)))]));
        let shown = checked.unwrap().text;
        assert!(shown.starts_with("error(message=\"éé") && shown.ends_with("é…)"));
        assert!(shown.len() < 500, "{}", shown.len());
    }

    #[test]
    fn events_say_what_each_rule_did() {
        #[derive(Default)]
        struct Kept(std::sync::Mutex<Vec<Value>>);
        impl EventSink for Kept {
            fn emit(&self, event: ProxyEvent) {
                self.0.lock().unwrap().push(event.fields);
            }
        }
        let (set, sink) = <(RuleSet, Kept)>::default();
        set.arm(armed(1, &rule("error", &[])));
        set.arm(armed(2, &rule("delay", &[("delay", text("1500ms"))])));
        set.arm(armed(3, &rule("delay", &[("delay", text("250us"))])));
        let outcome = |rule: &ArmedRule| match rule.rule.action.class {
            Class::Terminal => json!({"code": "X"}),
            _ => Value::Null,
        };
        set.evaluate_with(|_| true, &sink, || json!({"query": "q"}), outcome);
        let events = sink.0.into_inner().unwrap();
        let shown: Vec<_> = events
            .iter()
            .map(|e| (&e["query"], &e["delay_ms"], &e["code"]))
            .collect();
        let q = &json!("q");
        assert_eq!(
            shown,
            [
                (q, &json!(1500), &Value::Null),
                (q, &json!(0.25), &Value::Null),
                (q, &Value::Null, &json!("X")),
            ]
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn lifting_cuts_a_delay_short() {
        let set = Arc::new(RuleSet::default());
        let d = armed(1, &rule("delay", &[("delay", Arg::Int(60))]));
        set.arm(d.clone());
        let sleeper = tokio::spawn(async move { d.delay(Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        set.lift(1);
        tokio::time::timeout(Duration::from_secs(30), sleeper)
            .await
            .expect("the delay must end")
            .unwrap();
    }
}

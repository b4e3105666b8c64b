//! The builtins' documentation, as the pages about the language are generated from it.

use starlark::docs::{DocItem, DocMember, DocModule};
use starlark::environment::GlobalsBuilder;

/// One builtin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltinDoc {
    /// Its name; with its namespace in front: "observe.stdout".
    pub name: String,
    /// How it is called: `sleep(duration)`.
    pub signature: String,
    /// What it does; the first paragraph is the summary.
    pub text: String,
}

/// Every builtin that Faultbox adds to Starlark, by name.
pub fn builtins() -> Vec<BuiltinDoc> {
    let ours = GlobalsBuilder::new().with(super::builtins::ours).build();
    let mut docs = vec![];
    collect("", &ours.documentation(), &mut docs);
    docs.sort_by(|a, b| a.name.cmp(&b.name));
    docs
}

fn collect(prefix: &str, module: &DocModule, docs: &mut Vec<BuiltinDoc>) {
    for (name, item) in &module.members {
        match item {
            DocItem::Module(inner) => collect(&format!("{prefix}{name}."), inner, docs),
            DocItem::Member(DocMember::Function(function)) => {
                let params = &function.params;
                let required = |p: &starlark::docs::DocParam| match &p.default_value {
                    None => p.name.clone(),
                    Some(_) => format!("{}=", p.name),
                };
                let mut shown: Vec<String> = params
                    .pos_only
                    .iter()
                    .chain(&params.pos_or_named)
                    .map(required)
                    .collect();
                shown.extend(params.args.iter().map(|p| format!("*{}", p.name)));
                shown.extend(params.named_only.iter().map(|p| format!("{}=", p.name)));
                shown.extend(params.kwargs.iter().map(|p| format!("**{}", p.name)));
                let text = function.docs.as_ref().map(|d| match &d.details {
                    Some(details) => format!("{}\n\n{details}", d.summary),
                    None => d.summary.clone(),
                });
                docs.push(BuiltinDoc {
                    name: format!("{prefix}{name}"),
                    signature: format!("{prefix}{name}({})", shown.join(", ")),
                    text: text.unwrap_or_default(),
                });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_is_documented() {
        let docs = builtins();
        assert!(docs.len() > 50, "{}", docs.len());
        for doc in &docs {
            assert!(!doc.text.is_empty(), "{} has no documentation", doc.name);
        }
        let of = |name: &str| docs.iter().find(|d| d.name == name).unwrap();
        assert_eq!(of("sleep").signature, "sleep(duration)");
        assert!(of("observe.stdout").text.contains("event"));
        assert!(of("fault").signature.starts_with("fault(target, *rules"));
    }
}

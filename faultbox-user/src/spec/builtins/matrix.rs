//! `fault_matrix(...)`: every scenario crossed with every fault.

use std::sync::Arc;

use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::none::NoneType;
use starlark::values::tuple::TupleRef;

use super::scenario::{
    assumptions, declare, expectation, function_name, hang_of, nullary, timeout as read_timeout,
};
use crate::plan::{FaultSet, TestDecl, TestKind};
use crate::report::MatrixLayout;
use crate::spec::context::{Body, FuncId, declaring, register as keep, site_pos};
use crate::spec::convert::kind_of;
use crate::spec::params::{boolean, dict, given, list};
use crate::spec::problem::{Place, Problem};
use crate::spec::values::assumption::Assumption;

/// A row: the function as the spec gave it, and its name.
struct Row<'v> {
    function: Value<'v>,
    name: String,
    code: FuncId,
}

/// Which cell a key of `overrides=` or `exclude=` names.
fn cell<'v>(
    rows: &[Row<'v>],
    columns: &[Arc<FaultSet>],
    place: Place,
    key: Value<'v>,
) -> Result<(usize, usize), Problem> {
    let keyword = match &place {
        Place::Item(name, _) => name.clone(),
        _ => String::new(),
    };
    let Some([scenario, fault]) = TupleRef::from_value(key).map(|t| t.content()) else {
        return Err(Problem::new(
            place,
            format!(
                "a key of `{keyword}` is a pair (scenario, assumption), not {}",
                kind_of(key)
            ),
        ));
    };
    let row = rows
        .iter()
        .position(|r| r.function.equals(*scenario).unwrap_or(false));
    let Some(row) = row else {
        let names: Vec<&str> = rows.iter().map(|r| r.name.as_str()).collect();
        return Err(Problem::new(
            place,
            format!(
                "`{keyword}` names a scenario that is not in this matrix: {}",
                scenario.to_str()
            ),
        )
        .help(match scenario.unpack_str() {
            Some(name) if names.contains(&name) => {
                format!("write the function itself, without quotes: ({name}, ...)")
            }
            _ => format!("its scenarios are {}", names.join(", ")),
        }));
    };
    let column = Assumption::from_value(*fault)
        .and_then(|a| columns.iter().position(|f| f.name == a.fault.name));
    let Some(column) = column else {
        let names: Vec<&str> = columns.iter().map(|f| f.name.as_str()).collect();
        return Err(Problem::new(
            place,
            format!(
                "`{keyword}` names a fault that is not in this matrix: {}",
                fault.to_str()
            ),
        )
        .help(match fault.unpack_str() {
            Some(name) if names.contains(&name) => {
                "write the assumption itself, not its name in quotes".to_owned()
            }
            _ => format!("its faults are {}", names.join(", ")),
        }));
    };
    Ok((row, column))
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Crosses scenarios with faults: one test `matrix_<scenario>_<fault>` per cell, and one `matrix_<scenario>_baseline` per
    /// scenario without faults, which must pass for the row to mean anything.
    ///
    /// `overrides` and the list `exclude` have (scenario, assumption) pairs as keys; `default_expect` judges every other cell. Each
    /// is a function of what the scenario returned; returning False fails, like raising. `require_faults_fire=True` turns a pass
    /// under a fault that never fired into `bypassed`.
    fn fault_matrix<'v>(
        #[starlark(require = named)] scenarios: Value<'v>,
        #[starlark(require = named)] faults: Value<'v>,
        #[starlark(require = named)] overrides: Option<Value<'v>>,
        #[starlark(require = named)] default_expect: Option<Value<'v>>,
        #[starlark(require = named)] exclude: Option<Value<'v>>,
        #[starlark(require = named)] require_faults_fire: Option<Value<'v>>,
        #[starlark(require = named)] timeout: Option<Value<'v>>,
        #[starlark(require = named)] baseline: Option<Value<'v>>,
        #[starlark(require = named)] monitors: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        let (world, site) = declaring(eval, "fault_matrix")?;
        if given(monitors).is_some_and(|v| v.length().map_or(true, |n| n > 0)) {
            return Err(Problem::keyword("monitors", "`monitors=` is not yet supported").into());
        }
        let mut rows: Vec<Row> = vec![];
        for (i, value) in list("scenarios", scenarios)?.into_iter().enumerate() {
            let at = |p: Problem| Problem {
                place: Place::Item("scenarios".into(), i),
                ..p
            };
            let function = nullary("scenarios", value).map_err(at)?;
            let name = function_name(function).ok_or_else(|| {
                at(
                    Problem::call("a cell takes its name from its scenario, and this one has none")
                        .help("write `def create_order(): ...` and give create_order"),
                )
            })?;
            if rows.iter().any(|r| r.name == name) {
                return Err(at(Problem::call(format!("scenario `{name}` is listed twice"))).into());
            }
            rows.push(Row {
                function,
                name,
                code: keep(eval, world, function),
            });
        }
        let columns = assumptions("faults", faults)?;
        for (name, empty) in [
            ("scenarios", rows.is_empty()),
            ("faults", columns.is_empty()),
        ] {
            if empty {
                return Err(Problem::param(
                    name,
                    format!("`{name}` is empty: the matrix has no cells"),
                )
                .into());
            }
        }
        for (i, fault) in columns.iter().enumerate() {
            if columns[..i].iter().any(|f| f.name == fault.name) {
                return Err(Problem::new(
                    Place::Item("faults".into(), i),
                    format!("assumption `{}` is listed twice", fault.name),
                )
                .into());
            }
        }
        let flag = |name: &str, value: Option<Value>, default: bool| {
            given(value).map_or(Ok(default), |v| boolean(name, v))
        };
        let require_faults_fire = flag("require_faults_fire", require_faults_fire, false)?;
        let with_baseline = flag("baseline", baseline, true)?;

        let default = given(default_expect)
            .map(|v| expectation(Place::Param("default_expect".into()), v))
            .transpose()?;
        let mut special = vec![];
        if let Some(value) = given(overrides) {
            for (i, (key, value)) in dict("overrides", value)?.into_iter().enumerate() {
                let place = Place::Item("overrides".into(), i);
                let cell = cell(&rows, &columns, place.clone(), key)?;
                let place = Place::Entry("overrides".into(), i);
                let function = expectation(place.clone(), value)?;
                let id = keep(eval, world, function);
                special.push((cell, function, (id, place)));
            }
        }
        let mut left_out = vec![];
        if let Some(value) = given(exclude) {
            for (i, key) in list("exclude", value)?.into_iter().enumerate() {
                let place = Place::Item("exclude".into(), i);
                let cell = cell(&rows, &columns, place.clone(), key)?;
                if special.iter().any(|(c, _, _)| *c == cell) {
                    return Err(Problem::new(
                        place,
                        "this cell has an override, so it cannot be excluded",
                    )
                    .into());
                }
                left_out.push(cell);
            }
        }
        let default_id =
            default.map(|f| (keep(eval, world, f), Place::Param("default_expect".into())));
        let matrix = {
            let mut declared = world.declared();
            declared.matrices.push(MatrixLayout {
                scenarios: rows.iter().map(|r| r.name.clone()).collect(),
                faults: columns.iter().map(|f| f.name.clone()).collect(),
                baseline: with_baseline,
            });
            declared.matrices.len() - 1
        };
        let decl = |name: String, kind, hang, baseline| -> Result<TestDecl, Problem> {
            Ok(TestDecl {
                name,
                kind,
                timeout: read_timeout(timeout, hang)?,
                baseline,
                require_faults_fire,
                pos: site_pos(&site),
            })
        };
        let baseline_of = |row: &Row| format!("matrix_{}_baseline", row.name);
        if with_baseline {
            for row in &rows {
                // Two matrices may share a scenario; it has one baseline then.
                let shared = world.declared().tests.iter().any(|t| {
                    t.decl.name == baseline_of(row)
                        && matches!(t.decl.kind, TestKind::Baseline { .. })
                });
                if shared {
                    continue;
                }
                // A default of expect_hang() is about faults; without them, not raising is what is asked.
                let hangs = hang_of(default).is_some();
                let body = Body {
                    setup: None,
                    code: row.code,
                    faults: vec![],
                    expect: default_id.clone().filter(|_| !hangs),
                    hang: None,
                };
                let kind = TestKind::Baseline {
                    matrix,
                    scenario: row.name.clone(),
                };
                let mut decl = decl(baseline_of(row), kind, None, None)?;
                decl.require_faults_fire = false;
                declare(world, Place::Call, decl, body, &site)?;
            }
        }
        for (i, row) in rows.iter().enumerate() {
            for (j, fault) in columns.iter().enumerate() {
                if left_out.contains(&(i, j)) {
                    continue;
                }
                let own = special.iter().find(|(c, _, _)| *c == (i, j));
                let (function, id) = match own {
                    Some((_, function, id)) => (Some(*function), Some(id.clone())),
                    None => (default, default_id.clone()),
                };
                let hang = hang_of(function);
                let body = Body {
                    setup: None,
                    code: row.code,
                    faults: vec![fault.clone()],
                    expect: id,
                    hang,
                };
                let kind = TestKind::Cell {
                    matrix,
                    scenario: row.name.clone(),
                    fault: fault.name.clone(),
                };
                let name = format!("matrix_{}_{}", row.name, fault.name);
                let baseline = with_baseline.then(|| baseline_of(row));
                let decl = decl(name, kind, hang, baseline)?;
                declare(world, Place::Call, decl, body, &site)?;
            }
        }
        Ok(NoneType)
    }
}

/// Adds it.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}

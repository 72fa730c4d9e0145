//! A run of the suite: what the cases share, and how they are run and reported.

use std::fs::File;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use libtest_mimic::{Arguments, Completion, Conclusion, Failed, Trial};

use crate::base_image;
use crate::machine::Machine;
use crate::options::{Engine, Setup};

/// One test.
#[derive(Clone, Copy)]
pub struct Case {
    /// `theme::what_it_proves`.
    pub name: &'static str,
    /// The test itself.
    pub run: fn(&Context) -> Result<Verdict>,
}

/// How a case that did not fail came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// What it claims holds.
    Passed,
    /// It cannot be tried here, and why.
    NotHere(String),
}

/// Everything cases share.
pub struct Context {
    setup: Setup,
    machines: Mutex<Machines>,
    count: AtomicU32,
    took: Mutex<Vec<(Duration, &'static str)>>,
}

/// How many cases the list of the slowest has.
const SLOWEST: usize = 15;

/// The machines that several cases use one after the other, each made by the first that asks for it.
#[derive(Default)]
struct Machines {
    docker: Option<Arc<Machine>>,
    faults: Option<Arc<Machine>>,
}

impl Context {
    /// What is under test.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The engine under test.
    pub fn engine(&self) -> Engine {
        self.setup.options.engine
    }

    /// How many CPUs machines are started with.
    pub fn cpus(&self) -> u8 {
        self.setup.options.cpus
    }

    /// A running machine with the base image, for cases that leave it as they found it. When it has gone down, the case that
    /// it went down in has failed with what its logs say, and the next ones get a new one. The machine of
    /// [`Context::fault_machine`] is deleted: two at once are much for a small host.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn machine(&self) -> Result<Arc<Machine>> {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = &machines.docker {
            if machine.berth(["status"]).run()?.code() == Some(0) {
                return Ok(Arc::clone(machine));
            }
            eprintln!("the machine is down; starting another\n{}", machine.diagnostics());
        }
        *machines = Machines::default();
        let machine = Arc::new(Machine::new(&self.setup)?);
        machine
            .start()
            .and_then(|_| base_image::import(&machine))
            .map_err(|error| anyhow!("{error:#}\n{}", machine.diagnostics()))
            .context("the machine for the docker suite did not start")?;
        machines.docker = Some(Arc::clone(&machine));
        Ok(machine)
    }

    /// Takes a case for this run; `false` when another run with the same directory of claims has it.
    fn claim(&self, case: &Case) -> Result<bool> {
        let Some(dir) = &self.setup.options.claims else {
            return Ok(true);
        };
        match File::create_new(dir.join(case.name)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot claim a case in {}", dir.display())),
        }
    }

    /// A running machine for cases that break it. It is started again where the case before left it stopped, which is
    /// part of what those cases prove. The machine of [`Context::machine`] is deleted, as that does with this one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn fault_machine(&self) -> Result<Arc<Machine>> {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.docker = None;
        let machine = match &machines.faults {
            Some(machine) => Arc::clone(machine),
            None => Arc::clone(
                machines
                    .faults
                    .insert(Arc::new(Machine::new(&self.setup)?.with_memory("1GiB"))),
            ),
        };
        if let Err(error) = machine.start() {
            // Reported by this case; the next one gets a new machine and not the same failure.
            let diagnostics = machine.diagnostics();
            machines.faults = None;
            bail!("{error:#}\n{diagnostics}");
        }
        Ok(machine)
    }

    /// A machine of the case's own, not started.
    ///
    /// # Errors
    /// When its directories cannot be made.
    pub fn new_machine(&self) -> Result<Machine> {
        Ok(Machine::new(&self.setup)?.with_memory("1GiB"))
    }

    /// A name nothing else in this run has.
    pub fn name(&self, stem: &str) -> String {
        format!("{stem}-{}", self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs a case, unless another run has it, and notes how long it took.
    fn try_case(&self, case: &Case) -> Result<Verdict> {
        if !self.claim(case)? {
            return Ok(Verdict::NotHere("another run has it".into()));
        }
        let begin = Instant::now();
        let result = (case.run)(self);
        let mut took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        took.push((begin.elapsed(), case.name));
        result
    }

    /// The ends of the logs of the shared machines.
    fn diagnostics(&self) -> String {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, machine) in [("docker", &machines.docker), ("fault", &machines.faults)] {
            if let Some(machine) = machine {
                text.push_str(&format!(
                    "=== the {name} machine, {}\n{}",
                    machine.dir().display(),
                    machine.diagnostics()
                ));
            }
        }
        text
    }
}

/// The cases whose names begin with one of `beginnings`; all when there is none.
///
/// # Errors
/// When a beginning is that of no case, which would go unnoticed.
pub fn only(mut cases: Vec<Case>, beginnings: &[String]) -> Result<Vec<Case>> {
    let begins = |case: &Case, beginning: &String| case.name.starts_with(beginning.as_str());
    for beginning in beginnings {
        if !cases.iter().any(|case| begins(case, beginning)) {
            bail!("there is no case whose name begins with {beginning}");
        }
    }
    cases.retain(|case| beginnings.is_empty() || beginnings.iter().any(|beginning| begins(case, beginning)));
    Ok(cases)
}

/// Runs the cases that the arguments choose, in the order given or in reverse.
pub fn run(setup: Setup, mut arguments: Arguments, mut cases: Vec<Case>) -> Conclusion {
    if setup.options.reverse {
        cases.reverse();
    }
    // The cases share a machine whose CPUs are all busy with one of them; side by side they would only time out.
    arguments.test_threads.get_or_insert(1);
    let context = Arc::new(Context {
        setup,
        machines: Mutex::default(),
        count: AtomicU32::new(0),
        took: Mutex::default(),
    });
    let trials = cases
        .into_iter()
        .map(|case| {
            let context = Arc::clone(&context);
            Trial::ignorable_test(case.name, move || match context.try_case(&case) {
                Ok(Verdict::Passed) => Ok(Completion::Completed),
                Ok(Verdict::NotHere(why)) => Ok(Completion::ignored_with(why)),
                Err(error) => {
                    // The report comes at the very end, and whoever watches a long run wants to know now.
                    eprintln!("{}: {error:#}", case.name);
                    Err(Failed::from(format!("{error:#}\n{}", context.diagnostics())))
                }
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(mut context) = Arc::into_inner(context) {
        let took = context.took.get_mut().unwrap_or_else(PoisonError::into_inner);
        if took.len() > SLOWEST {
            eprintln!("{}", slowest(took));
        }
        let machines = context
            .machines
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        for machine in [machines.docker, machines.faults].into_iter().flatten() {
            finish(machine, &conclusion, context.setup.options.keep);
        }
    }
    conclusion
}

/// What took longest, the machine that the first case starts included.
fn slowest(took: &mut [(Duration, &'static str)]) -> String {
    took.sort_by(|one, other| other.cmp(one));
    let all: Duration = took.iter().map(|(time, _)| *time).sum();
    let mut text = format!(
        "{} cases took {:.0} s; the slowest:",
        took.len(),
        all.as_secs_f64()
    );
    for (time, name) in took.iter().take(SLOWEST) {
        text += &format!("\n{:>7.1} s  {name}", time.as_secs_f64());
    }
    text
}

fn finish(machine: Arc<Machine>, conclusion: &Conclusion, keep: bool) {
    if let Some(mut machine) = Arc::into_inner(machine)
        && keep
        && conclusion.has_failed()
    {
        drop(machine.stop());
        eprintln!("kept {}", machine.keep().display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_and_nothing_that_is_not_there() {
        let cases = || {
            ["a::one", "a::two", "b::one"]
                .map(|name| Case {
                    name,
                    run: |_| Ok(Verdict::Passed),
                })
                .to_vec()
        };
        let names = |beginnings: &[&str]| {
            let beginnings: Vec<_> = beginnings.iter().map(|&name| name.to_owned()).collect();
            let cases = only(cases(), &beginnings)?;
            Ok::<_, anyhow::Error>(cases.iter().map(|case| case.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap().len(), 3);
        assert_eq!(names(&["b::", "a::t"]).unwrap(), ["a::two", "b::one"]);
        let error = names(&["a::", "c::"]).unwrap_err().to_string();
        assert!(error.ends_with("begins with c::"), "{error}");
    }
}

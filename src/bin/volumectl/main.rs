//! The operator's command.

mod arguments;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use serde::Serialize;

use arguments::{Arguments, Change, Command, Format, Output, WaitFor};
use volumed::control::client::Client;
use volumed::control::names::{ObjectName, ScopeName};
use volumed::control::render::{self, Style};
use volumed::control::wait::Goal;
use volumed::control::{api, foreign, yaml};

/// What a command ends in, by its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Done = 0,
    Other = 1,
    Failed = 2,
    Unknown = 3,
    TimedOut = 124,
}

impl From<Ending> for ExitCode {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Done => Self::from(0),
            Ending::Other => Self::from(1),
            Ending::Failed => Self::from(2),
            Ending::Unknown => Self::from(3),
            Ending::TimedOut => Self::from(124),
        }
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(asked_or_wrong) => {
            // clap's own code for misuse is 2, which here means "failed".
            let wrong = asked_or_wrong.use_stderr();
            let _printed = asked_or_wrong.print();
            return if wrong { Ending::Other.into() } else { Ending::Done.into() };
        }
    };
    match run(arguments) {
        Ok(ending) => ending.into(),
        Err(error) if is_broken_pipe(&error) => Ending::Done.into(),
        Err(error) => {
            let _printed = writeln!(io::stderr(), "volumectl: {error:#}");
            Ending::Other.into()
        }
    }
}

/// Whoever reads our output and stops has what they wanted.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[tokio::main(flavor = "current_thread")]
async fn run(arguments: Arguments) -> anyhow::Result<Ending> {
    let mut client = Client::connect(&arguments.socket).await?;
    let whole = Command::Status { objects: Vec::new(), output: Output { output: Format::Table } };
    match arguments.command.unwrap_or(whole) {
        Command::List { output } => {
            let answer = client.status(Vec::new()).await?;
            print(&output, &answer, |style| render::list(&answer, style), || object_names(&answer.volumes))?;
            Ok(Ending::Done)
        }
        Command::Status { objects, output } => {
            let answer = client.status(names(&objects)).await?;
            let text = |style| {
                if objects.is_empty() {
                    render::overview(&answer, style)
                } else {
                    render::status(&answer, style)
                }
            };
            print(&output, &answer, text, || object_names(&answer.volumes))?;
            report_unknown(&answer.unknown)
        }
        Command::Explain { objects, output } => {
            let answer = client.status(names(&objects)).await?;
            let text = |style| render::explain(&answer.volumes, answer.now_ms, style);
            print(&output, &answer, text, || object_names(&answer.volumes))?;
            report_unknown(&answer.unknown)
        }
        Command::Wait { objects, goal, timeout, output } => {
            let goal = match goal {
                WaitFor::Published => Goal::Published,
                WaitFor::Released => Goal::Released,
            };
            wait(&mut client, &objects, goal, timeout, &output).await
        }
        Command::Drivers { output } => {
            let answer = client.drivers().await?;
            let names = || answer.drivers.iter().map(|driver| driver.name.clone()).collect();
            print(&output, &answer, |style| render::drivers(&answer, style), names)?;
            Ok(Ending::Done)
        }
        Command::Retry { objects, output } => {
            let answer = client.retry(names(&objects)).await?;
            let text = |_: Style| format!("{} blocked steps are tried again\n", answer.steps);
            print(&output, &answer, text, || names(&objects))?;
            report_unknown(&answer.unknown)
        }
        Command::Approve { output } => {
            let answer = client.approve().await?;
            let held = answer.approved;
            let text = |_: Style| {
                format!("the manifest directories are accepted as they are; {held} volumes are let go\n")
            };
            print(&output, &answer, text, Vec::new)?;
            Ok(Ending::Done)
        }
        Command::Foreign { output } => {
            let volumes = client.status(Vec::new()).await?.foreign;
            let paths = || volumes.iter().map(|foreign| foreign.path.clone()).collect();
            print(&output, &volumes, |style| foreign::list(&volumes, style), paths)?;
            Ok(Ending::Done)
        }
        Command::Change(change) => run_change(&mut client, change).await,
    }
}

async fn run_change(client: &mut Client, change: Change) -> anyhow::Result<Ending> {
    match change {
        Change::Pause { scope, output } => {
            let answer = client.pause(words(&scope.scopes), scope.all).await?;
            let text = |_: Style| format!("{}\n", now_paused(&answer.paused));
            print(&output, &answer, text, || answer.paused.clone())?;
            report_unknown(&answer.unknown)
        }
        Change::Resume { scope, output } => {
            let answer = client.resume(words(&scope.scopes), scope.all).await?;
            let pauses = if answer.resumed == 1 { "pause" } else { "pauses" };
            let still = now_paused(&answer.paused);
            let text = |_: Style| format!("{} {pauses} taken back; {still}\n", answer.resumed);
            print(&output, &answer, text, || answer.paused.clone())?;
            for name in &answer.unknown {
                writeln!(io::stderr().lock(), "{name}: not paused by this name")?;
            }
            Ok(if answer.unknown.is_empty() { Ending::Done } else { Ending::Unknown })
        }
        Change::Adopt { path, output } => {
            let path = std::path::absolute(&path)?;
            let path = path.to_str().ok_or_else(|| anyhow::anyhow!("{} is no UTF-8", path.display()))?;
            let answer = client.adopt(path.to_owned()).await?;
            print(&output, &answer, |_| lines(&answer.done), Vec::new)?;
            Ok(Ending::Done)
        }
        Change::AcceptIdentity { object, output } => {
            let answer = client.accept_identity(object.to_string()).await?;
            print(&output, &answer, |_| lines(&answer.done), Vec::new)?;
            report_unknown(&answer.unknown)
        }
        Change::Release { what, force, output } => {
            let answer = client.release(what.to_string(), force).await?;
            print(&output, &answer, |_| lines(&answer.done), Vec::new)?;
            report_unknown(&answer.unknown)
        }
    }
}

fn now_paused(paused: &[String]) -> String {
    if paused.is_empty() {
        "nothing is paused".to_owned()
    } else {
        format!("paused now: {}", paused.join(", "))
    }
}

fn lines(done: &[String]) -> String {
    done.iter().map(|what| format!("{}\n", render::printable(what))).collect()
}

fn words(scopes: &[ScopeName]) -> Vec<String> {
    scopes.iter().map(ToString::to_string).collect()
}

async fn wait(
    client: &mut Client,
    objects: &[ObjectName],
    goal: Goal,
    timeout: Option<Duration>,
    output: &Output,
) -> anyhow::Result<Ending> {
    let answer = client.wait(names(objects), goal, timeout).await?;
    let mut text = String::new();
    let mut ending = Ending::Done;
    for result in answer.results.iter().filter(|result| result.outcome != "reached") {
        let (sentence, this) = match result.outcome.as_str() {
            "failed" => (format!("cannot be {} before its manifest is edited", goal.name()), Ending::Failed),
            "unknown" => ("no manifest and no volume has this name".to_owned(), Ending::Unknown),
            "timed-out" => (format!("timed out waiting to be {}", goal.name()), Ending::TimedOut),
            _ => ("given up because of the others".to_owned(), ending),
        };
        // A failure says more than a time-out; two that both tell something end in the first.
        if matches!(ending, Ending::Done | Ending::TimedOut) {
            ending = this;
        }
        text.push_str(&format!("{}: {sentence}\n", result.object));
        let style = Style { color: colored(io::stderr().is_terminal()), wide: false };
        let unfinished: Vec<_> = result.volumes.iter().filter(|v| v.actual != goal.name()).cloned().collect();
        text.push_str(&render::explain(&unfinished, answer.now_ms, style));
    }
    match output.output {
        Format::Json | Format::Yaml => print(output, &answer, |_| String::new(), Vec::new)?,
        Format::Table | Format::Wide | Format::Name => write!(io::stderr().lock(), "{text}")?,
    }
    Ok(ending)
}

fn names(objects: &[ObjectName]) -> Vec<String> {
    objects.iter().map(ToString::to_string).collect()
}

fn object_names(volumes: &[api::Volume]) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = volumes.iter().map(|volume| volume.object.clone()).collect();
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

fn report_unknown(unknown: &[String]) -> anyhow::Result<Ending> {
    for name in unknown {
        writeln!(io::stderr().lock(), "{name}: no manifest and no volume has this name")?;
    }
    Ok(if unknown.is_empty() { Ending::Done } else { Ending::Unknown })
}

fn print(
    output: &Output,
    answer: &impl Serialize,
    text: impl Fn(Style) -> String,
    names: impl Fn() -> Vec<String>,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let style = Style { color: colored(io::stdout().is_terminal()), wide: output.output == Format::Wide };
    match output.output {
        Format::Table | Format::Wide => write!(out, "{}", text(style))?,
        Format::Name => {
            for name in names() {
                writeln!(out, "{name}")?;
            }
        }
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, answer)?;
            writeln!(out)?;
        }
        Format::Yaml => out.write_all(yaml::document(&serde_json::to_value(answer)?).as_bytes())?,
    }
    out.flush()
}

/// Colours on a terminal, unless NO_COLOR is set (no-color.org).
fn colored(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

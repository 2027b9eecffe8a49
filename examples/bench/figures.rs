//! Figures, and how they are printed.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

/// What repetitions came to: times in ms, or rates.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, took: Duration) {
        self.add_value(took.as_secs_f64() * 1000.0);
    }

    pub(crate) fn add_value(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// Returns the sample that this many percent are not above; 0 of none.
    fn percentile(&self, percent: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last * percent + 50) / 100).copied().unwrap_or_default()
    }
}

/// One measured thing.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    floor: Option<f64>,
    ratio: Option<f64>,
    low: f64,
    high: f64,
    count: usize,
    #[serde(skip)]
    aim: String,
}

impl Figure {
    pub(crate) fn ms(name: String, samples: &Samples, floor: Option<&Samples>, aim: &str) -> Self {
        let value = samples.percentile(50);
        let floor = floor.map(|floor| floor.percentile(50));
        Self {
            name,
            value,
            unit: "ms",
            floor,
            ratio: floor.map(|floor| value / floor),
            low: samples.percentile(10),
            high: samples.percentile(90),
            count: samples.0.len(),
            aim: aim.to_owned(),
        }
    }

    /// A rate (the higher the better): the ratio is what is left of the floor.
    pub(crate) fn rate(
        name: String,
        unit: &'static str,
        rates: &Samples,
        floor: &Samples,
        aim: &str,
    ) -> Self {
        Self { unit, ..Self::ms(name, rates, Some(floor), aim) }
    }

    pub(crate) fn count(name: String, count: usize, unit: &'static str, aim: &str) -> Self {
        let value = u32::try_from(count).map_or(f64::INFINITY, f64::from);
        Self::once(name, value, unit, aim)
    }

    pub(crate) fn seconds(name: String, time: Duration, unit: &'static str, aim: &str) -> Self {
        Self::once(name, time.as_secs_f64(), unit, aim)
    }

    pub(crate) fn mib(name: String, kib: u32, aim: &str) -> Self {
        Self::once(name, f64::from(kib) / 1024.0, "MiB", aim)
    }

    fn once(name: String, value: f64, unit: &'static str, aim: &str) -> Self {
        let aim = aim.to_owned();
        Self { name, value, unit, floor: None, ratio: None, low: value, high: value, count: 1, aim }
    }
}

/// Prints each figure as soon as it is known.
#[derive(Debug)]
pub(crate) struct Printer {
    json: bool,
}

impl Printer {
    pub(crate) fn new(json: bool) -> anyhow::Result<Self> {
        let mut out = io::stdout().lock();
        if !json {
            let load = std::fs::read_to_string("/proc/loadavg").context("read the load")?;
            let load = load.split(' ').next().unwrap_or_default();
            let cores = std::thread::available_parallelism()?;
            writeln!(
                out,
                "{cores} cores, load {load} at the start (others' work slows both value and floor)"
            )?;
            writeln!(
                out,
                "{:<22} {:>10} {:<9} {:>10} {:>6} {:>10} {:>10} {:>5}  aim",
                "figure", "median", "", "floor", "ratio", "10th", "90th", "count"
            )?;
        }
        Ok(Self { json })
    }

    pub(crate) fn print(&mut self, figure: Figure) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, &figure)?;
            writeln!(out)?;
            return Ok(());
        }
        let Figure { name, value, unit, floor, ratio, low, high, count, aim } = figure;
        let number = |number: Option<f64>| number.map_or_else(String::new, |number| format!("{number:.2}"));
        let (floor, ratio) = (number(floor), number(ratio));
        writeln!(
            out,
            "{name:<22} {value:>10.2} {unit:<9} {floor:>10} {ratio:>6} {low:>10.2} {high:>10.2} {count:>5}  {aim}"
        )?;
        Ok(())
    }
}

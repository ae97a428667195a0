//! All that a bench has measured: cells, a row for each subject, all its runs.

use crate::sample::{Metric, Sample};
use crate::stats::Median;
use serde::{Serialize, Serializer};

/// What became of a bench.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Its name.
    pub bench: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// Its cells.
    pub cells: Vec<Cell>,
    /// Who was not measured, and why.
    pub skipped: Vec<String>,
}

/// Subjects under the same load.
#[derive(Debug, Serialize)]
pub struct Cell {
    /// The load.
    pub title: String,
    /// Where it lies on a curve, if it is a point of one.
    pub point: Option<Point>,
    /// A row for each subject; ratios are to the first.
    pub rows: Vec<Row>,
}

/// A place on a curve.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// What is varied, the name of the axis.
    pub axis: &'static str,
    /// How much of it.
    pub at: f64,
}

/// A subject in a cell.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    /// The subject.
    pub name: String,
    /// One sample for each time that it was measured.
    #[serde(serialize_with = "as_maps")]
    pub runs: Vec<Sample>,
    /// System calls per request by name, the most frequent first.
    pub calls: Vec<(String, f64)>,
    /// Why it was not measured to the end.
    pub failure: Option<String>,
}

impl Cell {
    /// What was measured of any subject, in order.
    pub fn metrics(&self) -> Vec<&'static Metric> {
        let mut metrics: Vec<&'static Metric> = Vec::new();
        for (metric, _) in self.rows.iter().flat_map(|row| row.runs.iter().flatten()) {
            if metrics.iter().all(|known| known.key != metric.key) {
                metrics.push(metric);
            }
        }
        metrics
    }
}

impl Row {
    /// The median of one metric over the runs.
    pub fn median(&self, metric: &Metric) -> Option<Median> {
        let values = self.runs.iter().flatten().filter(|(of, _)| of.key == metric.key);
        Median::of(&values.map(|(_, value)| *value).collect::<Vec<_>>())
    }
}

fn as_maps<S: Serializer>(runs: &[Sample], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(runs.iter().map(Named))
}

struct Named<'a>(&'a Sample);

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(metric, value)| (metric.key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{CPU, REQUESTS};

    #[test]
    fn medians_are_over_the_runs_that_have_the_metric() {
        let runs = vec![vec![(&CPU, 9.0)], vec![(&REQUESTS, 1.0)], vec![(&REQUESTS, 3.0)]];
        let row = Row { runs, ..Row::default() };
        assert_eq!(row.median(&REQUESTS).map(|median| median.value), Some(2.0));
        assert_eq!(row.median(&crate::sample::P50), None);
        let cell = Cell { title: String::new(), point: None, rows: vec![row] };
        assert_eq!(
            cell.metrics().iter().map(|metric| metric.key).collect::<Vec<_>>(),
            [CPU.key, REQUESTS.key]
        );
    }

    #[test]
    fn raw_runs_are_maps_in_json() {
        let row = Row { name: "a".into(), runs: vec![vec![(&CPU, 1.5)]], ..Row::default() };
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(json["runs"][0]["cpu_us_per_request"], 1.5);
    }
}

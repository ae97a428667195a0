//! Curves: for each axis a block, in it a panel for each compared metric, in it a curve for each subject. The horizontal
//! axis is logarithmic, for what is varied is doubled from point to point; the vertical one begins at zero.

use super::Palette;
use super::svg::{Anchor, Style, Svg, short, ticks};
use crate::report::{Cell, Report};
use crate::sample::Metric;

const MARGIN: f64 = 24.0;
const LABELS: f64 = 52.0;
const PLOT: (f64, f64) = (340.0, 210.0);
const GAP: f64 = 36.0;
const LEGEND_ENTRY: f64 = 24.0;
const CHARACTER: f64 = 7.0;

/// Cells along one axis, each with its place.
struct Axis<'a> {
    name: &'static str,
    cells: Vec<(f64, &'a Cell)>,
}

pub(super) fn draw(report: &Report, palette: &Palette) -> String {
    let axes = axes(report);
    let metrics = |axis: &Axis<'_>| -> Vec<&'static Metric> {
        let mut all: Vec<&'static Metric> = Vec::new();
        for metric in axis.cells.iter().flat_map(|(_, cell)| cell.metrics()).filter(|metric| metric.compared)
        {
            if all.iter().all(|known| known.key != metric.key) {
                all.push(metric);
            }
        }
        all
    };
    let panels = axes.iter().map(|axis| metrics(axis).len()).max().unwrap_or(0).max(2) as f64;
    let mut svg = Svg::new(2.0 * MARGIN + panels * (LABELS + PLOT.0) + (panels - 1.0) * GAP);
    let mut y = MARGIN + 14.0;
    svg.text(MARGIN, y, Anchor::Start, Style::Heading, &format!("{}: {}", report.bench, report.about));
    y += 28.0;
    let mut x = MARGIN;
    for name in &palette.0 {
        svg.bar(x, y - 9.0, 14.0, 10.0, palette.color(name));
        svg.text(x + 19.0, y, Anchor::Start, Style::Label, name);
        x += LEGEND_ENTRY + 14.0 + name.chars().count() as f64 * CHARACTER;
    }
    y += 34.0;
    for axis in &axes {
        for (index, metric) in metrics(axis).into_iter().enumerate() {
            let left = MARGIN + LABELS + index as f64 * (LABELS + PLOT.0 + GAP);
            plot(&mut svg, (left, y + 8.0), axis, metric, palette);
        }
        y += PLOT.1 + 76.0;
    }
    svg.finish(y - 12.0)
}

fn axes(report: &Report) -> Vec<Axis<'_>> {
    let mut axes: Vec<Axis<'_>> = Vec::new();
    for cell in &report.cells {
        let Some(point) = &cell.point else { continue };
        match axes.iter_mut().find(|axis| axis.name == point.axis) {
            Some(axis) => axis.cells.push((point.at, cell)),
            None => axes.push(Axis { name: point.axis, cells: vec![(point.at, cell)] }),
        }
    }
    axes
}

fn plot(svg: &mut Svg, (left, top): (f64, f64), axis: &Axis<'_>, metric: &Metric, palette: &Palette) {
    let (right, bottom) = (left + PLOT.0, top + PLOT.1);
    let places = || axis.cells.iter().map(|(at, _)| at.ln());
    let (low, high) = (places().fold(f64::MAX, f64::min), places().fold(f64::MIN, f64::max));
    // Points keep clear of the edges; a single one lies in the middle.
    let across = |at: f64| {
        let part = if high > low { (at.ln() - low) / (high - low) } else { 0.5 };
        left + 14.0 + part * (PLOT.0 - 28.0)
    };
    let medians = |name: &str| -> Vec<(f64, f64)> {
        let median = |(at, cell): &(f64, &Cell)| {
            let row = cell.rows.iter().find(|row| row.name == name)?;
            Some((*at, row.median(metric)?.value))
        };
        axis.cells.iter().filter_map(median).collect()
    };
    let values = || palette.0.iter().flat_map(|name| medians(name)).map(|(_, value)| value);
    let scale = ticks(values().fold(0.0, f64::max), 5);
    let max = scale.last().copied().unwrap_or(1.0);
    let up = |value: f64| bottom - value / max * PLOT.1;

    svg.text(left, top - 12.0, Anchor::Start, Style::Title, &format!("{} by {}", metric.title, axis.name));
    for value in scale {
        svg.rule((left, up(value)), (right, up(value)));
        svg.text(left - 7.0, up(value) + 4.0, Anchor::End, Style::Faint, &short(value));
    }
    for (at, _) in &axis.cells {
        svg.rule((across(*at), bottom), (across(*at), bottom + 4.0));
        svg.text(across(*at), bottom + 17.0, Anchor::Middle, Style::Faint, &short(*at));
    }
    svg.text((left + right) / 2.0, bottom + 34.0, Anchor::Middle, Style::Faint, axis.name);
    for name in &palette.0 {
        let points: Vec<_> = medians(name).into_iter().map(|(at, value)| (across(at), up(value))).collect();
        svg.curve(&points, palette.color(name));
    }
}

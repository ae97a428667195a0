//! A report as a picture: bars for each cell, or curves where cells are points of one.

mod bars;
mod lines;
mod svg;

pub(crate) use svg::escape;

use crate::report::Report;

/// What series are drawn in, in the order of their first appearance. Chosen to be told apart on white and on black.
const COLORS: &[&str] =
    &["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#9c755f", "#d4a72c", "#868e96"];

/// The names of all subjects of a report, in the order of their first appearance: each has one colour everywhere.
struct Palette(Vec<String>);

impl Palette {
    fn of(report: &Report) -> Palette {
        let mut names: Vec<String> = Vec::new();
        for row in report.cells.iter().flat_map(|cell| &cell.rows) {
            if !names.contains(&row.name) {
                names.push(row.name.clone());
            }
        }
        Palette(names)
    }

    fn color(&self, name: &str) -> &'static str {
        let index = self.0.iter().position(|known| known == name).unwrap_or(0);
        COLORS[index % COLORS.len()]
    }
}

/// The picture, an SVG document.
pub fn draw(report: &Report) -> String {
    let palette = Palette::of(report);
    let curves = report.cells.iter().any(|cell| cell.point.is_some());
    if curves { lines::draw(report, &palette) } else { bars::draw(report, &palette) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Cell, Point, Row};
    use crate::sample::{CPU, REQUESTS};

    fn report(points: &[Option<f64>]) -> Report {
        let row = |name: &str| Row {
            name: name.into(),
            runs: vec![vec![(&REQUESTS, 1000.0), (&CPU, 4.5)], vec![(&REQUESTS, 1200.0), (&CPU, 4.7)]],
            ..Row::default()
        };
        let failed = Row { name: "<base>".into(), failure: Some("no".into()), ..Row::default() };
        let cell = |at: &Option<f64>| Cell {
            title: "raw & ready".into(),
            point: at.map(|at| Point { axis: "workers", at }),
            rows: vec![
                Row { name: failed.name.clone(), failure: failed.failure.clone(), ..Row::default() },
                row("ring"),
                row("tokio"),
            ],
        };
        Report {
            bench: "echo",
            about: "requests",
            cells: points.iter().map(cell).collect(),
            skipped: Vec::new(),
        }
    }

    /// Every element that is opened is closed, in order.
    fn check_well_formed(svg: &str) {
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').expect("a tag ends");
            let name = tag.split([' ', '/']).find(|word| !word.is_empty()).unwrap_or_default();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn bars_have_names_values_and_titles() {
        let svg = draw(&report(&[None, None]));
        check_well_formed(&svg);
        for text in
            ["raw &amp; ready", "&lt;base&gt;", "failed", "ring", "1,100", "4.60", "CPU us/req", COLORS[1]]
        {
            assert!(svg.contains(text), "{text} is missing in {svg}");
        }
    }

    #[test]
    fn curves_have_axes_and_a_legend() {
        let svg = draw(&report(&[Some(1.0), Some(2.0), Some(8.0)]));
        check_well_formed(&svg);
        for text in ["workers", "requests/s", "tokio", "<polyline", ">8<"] {
            assert!(svg.contains(text), "{text} is missing in {svg}");
        }
    }

    #[test]
    fn nothing_measured_is_a_picture_too() {
        check_well_formed(&draw(&report(&[])));
        let mut report = report(&[None, None]);
        report.cells.iter_mut().flat_map(|cell| &mut cell.rows).for_each(|row| row.runs.clear());
        check_well_formed(&draw(&report));
        report.cells.iter_mut().for_each(|cell| cell.point = Some(Point { axis: "workers", at: 1.0 }));
        check_well_formed(&draw(&report));
    }
}

//! One page of HTML with all tables and pictures, which needs nothing else to be read.

use crate::chart::escape;
use crate::machine::Machine;
use crate::report::Report;
use crate::table::Table;

const STYLE: &str = "\
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;margin:.4em 0;font-size:13px}td,th{padding:.15em .7em;text-align:right;\
border-bottom:1px solid #8884;white-space:nowrap}td:first-child,th:first-child{text-align:left}\
.scroll{overflow-x:auto}.note{font-size:12px;opacity:.75;margin:.2em 0}svg{max-width:100%;height:auto}\
code{font-size:13px}h3{margin-bottom:0}";

/// The page.
pub fn html(machine: &Machine, command: &str, reports: &[(Report, String)]) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Benchmarks</title>\n\
         <style>{STYLE}</style>\n<h1>Benchmarks</h1>\n<p><code>{}</code></p>\n<p>{}. Transparent huge pages: {}.</p>\n\
         <p>Medians; ± is half the range of the runs.</p>\n",
        escape(command),
        escape(&machine.line()),
        escape(&machine.huge_pages),
    );
    for (report, picture) in reports {
        page +=
            &format!("<h2 id=\"{0}\">{0}</h2>\n<p>{1}</p>\n{picture}", report.bench, escape(report.about));
        for skipped in &report.skipped {
            page += &format!("<p class=\"note\">skipped: {}</p>\n", escape(skipped));
        }
        for cell in &report.cells {
            page += &format!("<h3>{}</h3>\n{}", escape(&cell.title), table(&Table::of(cell)));
        }
    }
    page + "</html>\n"
}

fn table(table: &Table) -> String {
    let line = |cells: &[String], tag: &str| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let rows: String = table.rows.iter().map(|row| line(row, "td")).collect();
    let notes: String =
        table.notes.iter().map(|note| format!("<p class=\"note\">{}</p>\n", escape(note))).collect();
    format!("<div class=\"scroll\"><table>\n{}{rows}</table></div>\n{notes}", line(&table.head, "th"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Cell, Row};
    use crate::sample::CPU;

    #[test]
    fn all_of_a_report_is_on_the_page() {
        let row = Row { name: "a<b".into(), runs: vec![vec![(&CPU, 1.0)]], ..Row::default() };
        let cells = vec![Cell { title: "cell & co".into(), point: None, rows: vec![row] }];
        let report =
            Report { bench: "echo", about: "about", cells, skipped: vec!["nginx: not installed".into()] };
        let page = html(&Machine::this(), "bench --x=<y>", &[(report, "<svg></svg>".into())]);
        for part in
            ["a&lt;b", "cell &amp; co", "skipped: nginx", "<svg></svg>", "--x=&lt;y&gt;", "<td>1.00</td>"]
        {
            assert!(page.contains(part), "{part}");
        }
    }
}

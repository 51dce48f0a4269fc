//! Draws the board on a terminal of any size.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};

use super::Screen;
use super::board::{self, Tab};

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let parts = Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)]);
    let [head, body, foot] = parts.areas(frame.area());
    frame.render_widget(Paragraph::new(heading(screen)), head);
    frame.render_widget(table(screen, body.height), body);
    frame.render_widget(Paragraph::new(footer(screen)), foot);
}

fn heading(screen: &Screen) -> Vec<Line<'static>> {
    let mut tabs = Vec::new();
    for tab in Tab::ALL {
        let style = if tab == screen.tab { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        let count = board::rows(&screen.seen, tab, screen.sort).len();
        tabs.push(Span::styled(format!(" {} {count} ", tab.name()), style));
        tabs.push(Span::raw(" "));
    }
    vec![Line::raw(board::summary(&screen.seen)), Line::from(tabs)]
}

fn table(screen: &Screen, height: u16) -> Table<'static> {
    let columns = screen.tab.columns();
    let mark = |index: usize, name: &str| match (index == screen.sort.column, screen.sort.reversed) {
        (true, false) => format!("{name} ^"),
        (true, true) => format!("{name} v"),
        (false, _) => name.to_owned(),
    };
    let names: Vec<String> = columns.iter().enumerate().map(|(index, name)| mark(index, name)).collect();
    let rows = board::rows(&screen.seen, screen.tab, screen.sort);
    let shown = (height as usize).saturating_sub(1);
    let first = screen.scroll.min(rows.len().saturating_sub(shown));
    let width = |index: usize| {
        let cells = rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.text.chars().count());
        cells.chain([names[index].chars().count()]).max().unwrap_or(0).min(40) as u16
    };
    let last = columns.len() - 1;
    let widths: Vec<Constraint> = (0..columns.len())
        .map(|index| if index == last { Constraint::Min(8) } else { Constraint::Length(width(index)) })
        .collect();
    let lines = rows.into_iter().skip(first).take(shown);
    let lines = lines.map(|row| Row::new(row.into_iter().map(|cell| cell.text).collect::<Vec<_>>()));
    Table::new(lines.collect::<Vec<_>>(), widths)
        .header(Row::new(names).style(Style::new().add_modifier(Modifier::BOLD)))
        .column_spacing(2)
}

fn footer(screen: &Screen) -> Line<'static> {
    match &screen.problem {
        Some(problem) => Line::styled(format!("trying again: {problem}"), Style::new().fg(Color::Red)),
        None => Line::raw("q quit   tab next table   left/right sort by   r reverse   up/down scroll"),
    }
}

"""The results of a comparison as one HTML page, comparison.html."""

from sat_vg.backbone_finetuning.reports.comparison_figures import draw_comparison
from sat_vg.backbone_finetuning.reports.comparison_report import Comparison, cells_of, headings_of, points
from sat_vg.backbone_finetuning.reports.pages import figure_url, render_page


def as_html(comparison: Comparison) -> str:
    """The page; see ``reports.pages`` for what it guards against."""
    differences = [(row.name, comparison.behind_best(row)) for row in comparison.rows[1:]]
    sections = {
        "Failures": comparison.failures,
        "Ranking": comparison.rows,
        "Chart": comparison.rows,
        "Differences": [found for _, found in differences if found.is_noise is not None],
        "Settings": comparison.settings or comparison.command,
        "Evaluations": comparison.reports,
    }
    return render_page(
        "comparison.html",
        title="Comparison of backbones",
        sections=[name for name, content in sections.items() if content],
        comparison=comparison,
        headings=headings_of(comparison)[3:],
        lines=list(zip(comparison.rows, cells_of(comparison), strict=True)),
        chart=figure_url(draw_comparison(comparison)),
        differences=differences,
        points=points,
    )

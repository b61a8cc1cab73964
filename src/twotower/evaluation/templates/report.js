(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = () => {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim();
    const quiet = style.getPropertyValue("--quiet").trim();
    const line = style.getPropertyValue("--line").trim();
    const font = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
    return {
      background: "transparent",
      font,
      view: { stroke: null },
      axis: {
        labelColor: ink, titleColor: quiet, gridColor: line, domainColor: line, tickColor: line,
        labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, labelPadding: 5,
      },
      legend: { labelColor: ink, labelFontSize: 12 },
      rule: { color: ink },
    };
  };
  // "ast" evaluates expressions without eval, which the page's security policy forbids.
  const draw = () => {
    for (const place of document.querySelectorAll("[data-chart]")) {
      const spec = specs[place.dataset.chart];
      window.vegaEmbed(place, spec, { actions: false, ast: true, renderer: "svg", config: config() });
    }
  };
  draw();
  dark.addEventListener("change", draw);
})();

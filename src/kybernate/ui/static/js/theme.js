// Sets the theme before the first paint. A classic script, since modules run after it.
(() => {
  "use strict";
  let theme = null;
  try {
    theme = localStorage.getItem("kybernate-theme");
  } catch {
    // Storage may be forbidden; the system's theme it is.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();

// Shows each case whole and cut, and tells what is there that may not be: see test_markdown.py.
async ([cases, allowed]) => {
  // The built files, as the page loads them, in the page's own shadow root and under its policy.
  const at = (name) => new URL(name, document.querySelector('script[src$="flaskchat.js"]').src).href;
  const { MarkdownView, styles } = await import(at('markdown.js'));
  await Promise.all([import(at('math.js')), import(at('highlight.js'))]);
  const root = document.querySelector('flask-chat').shadowRoot;
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(styles);
  root.adoptedStyleSheets = [...root.adoptedStyleSheets, sheet];
  const place = root.querySelector('.messages');
  const rest = () => new Promise((resolve) => requestIdleCallback(resolve, { timeout: 100 }));
  const wrong = [];
  const names = new Set(allowed);
  const plain = /^(?:class|dir|title|type|tabindex|role|aria-label|aria-level|scope|start|rel|target|href)$/;
  const check = (node, text) => {
    for (const each of node.querySelectorAll('*')) {
      const math = each.namespaceURI.endsWith('MathML');
      if (!names.has(each.localName)) wrong.push([text, 'element ' + each.localName]);
      for (const { name, value } of each.attributes) {
        const bad =
          /^on|^src|^xlink|^id$|^ping$|^srcdoc$/i.test(name) ||
          (math ? name === 'href' || (name === 'style' && /url|\(/i.test(value)) : !plain.test(name));
        if (bad) wrong.push([text, `${name}=${value}`]);
      }
      if (each.hasAttribute('href')) {
        if (each.localName !== 'a' || !/^(?:https?:|mailto:)/.test(each.getAttribute('href'))) wrong.push([text, each.outerHTML]);
        if (each.rel !== 'noopener noreferrer' || each.target !== '_blank') wrong.push([text, each.outerHTML]);
      }
    }
  };
  const slowest = { time: 0 };
  const show = (view, text, final) => {
    const before = performance.now();
    while (!view.update(text, final, 12));
    const time = performance.now() - before;
    if (time > slowest.time) Object.assign(slowest, { time, text: text.slice(0, 60) });
  };
  for (let n = 0; n < cases.length; n += 20) {
    const views = [];
    for (const text of cases.slice(n, n + 20)) {
      const whole = new MarkdownView(), cut = new MarkdownView();
      place.append(whole.node, cut.node);
      show(whole, text, true);
      for (const part of [4, 2, 4 / 3]) {
        show(cut, text.slice(0, text.length / part), false);
        check(cut.node, text);
      }
      show(cut, text, true);
      check(whole.node, text);
      if (cut.node.textContent !== whole.node.textContent) wrong.push([text, 'cut: ' + cut.node.textContent.slice(0, 200)]);
      views.push([whole, cut, text]);
    }
    await rest();
    // What is highlighted and typeset comes later.
    await new Promise((resolve) => setTimeout(resolve, 20));
    for (const [whole, cut, text] of views) {
      check(whole.node, text);
      const { right } = place.getBoundingClientRect();
      for (const math of whole.node.querySelectorAll('.math')) {
        if (math.getBoundingClientRect().right > right + 1) wrong.push([text, 'wider than the column']);
      }
      whole.node.remove();
      cut.node.remove();
    }
  }
  return { wrong: wrong.map(([text, why]) => [text.slice(0, 200), why.slice(0, 200)]), slowest };
}

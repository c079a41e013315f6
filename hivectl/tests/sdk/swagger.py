"""A person in a browser: opens the docs, puts the key in, tries a chat out."""

import os
import sys

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1300,1700"
).split()

options = webdriver.ChromeOptions()
for argument in [*QUIET, f"--user-data-dir={sys.argv[1]}"]:
    options.add_argument(argument)
browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
try:
    wait = WebDriverWait(browser, 60)

    def find(selector, inside=browser):
        return wait.until(lambda _: inside.find_element(By.CSS_SELECTOR, selector))

    browser.get(os.environ["OPENAI_BASE_URL"].removesuffix("/v1") + "/docs")
    find(".btn.authorize").click()
    find(".auth-container input").send_keys(os.environ["OPENAI_API_KEY"])
    find(".auth-btn-wrapper .authorize").click()
    find(".auth-btn-wrapper .btn-done").click()
    chat = find("#operations-chat-chat_create")
    find(".opblock-summary", chat).click()
    execute = find(".execute", chat)
    # The page unfolds with an animation; a click on the way down would miss.
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", execute)
    execute.click()
    answer = find(".live-responses-table .response", chat).text
    assert answer.startswith("200") and "chat.completion" in answer, answer
finally:
    browser.quit()
print("the docs: all good")

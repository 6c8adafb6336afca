"""A project as a host has one, with a Bootstrap-like page of its own: the chat stands in a corner and within the text.

flask --app tests.browser.shop.app run
"""

"""The kinds of tasks: one line each, "register kind | template". Slots are filled by `draft.prompts.fill`.

Registers: chat, prose, code, edit, and raw (continued without a chat header). "\\n" in a template is a line break.
"""

from __future__ import annotations

Kind = tuple[str, str, str]


def _kinds(text: str) -> tuple[Kind, ...]:
    out: list[Kind] = []
    for line in text.strip().splitlines():
        head, template = line.split("|", 1)
        register, kind = head.split()
        out.append((kind, register, template.strip().replace("\\n", "\n")))
    return tuple(out)


TRAIN: tuple[Kind, ...] = _kinds(r"""
chat explain | Explain {topic} {style}.
chat what-is | What is the idea behind {topic}?
chat why | Why do people care about {topic}?
chat history | Tell me the history of {topic} {style}.
chat myths | List {number} common myths about {topic} and correct them.
chat facts | Give me {number} facts about {topic}.
chat quiz | Make a quiz of {number} questions about {topic}, with answers.
chat multiple-choice | Write {number} multiple choice questions on {topic}. Mark the right answer.
chat advice | I feel {feeling} about {topic}. What should I do?
chat small-talk | Hi! I'm {person}, a {job}. How was your day?
chat smalltalk2 | hello, i am {feeling} today
chat recommend | Recommend {number} ways to learn about {topic}.
chat beginner | I want to start with {topic}. Where do I begin?
chat compare | Compare {topic} and {topic}.
chat difference | What is the difference between {topic} and {topic}, if any?
chat pros-cons | What are the advantages and disadvantages of {product}?
chat choose | Should I buy {product} or {product}? I have {n} euros.
chat steps | How do I repair {thing}? Answer {style}.
chat howto | How can a {job} get better at {topic}?
chat plan-week | Plan my week. I am a {job} and want to practise {topic} for {small} minutes a day.
chat plan-trip | Plan a {number}-day trip to {place}.
chat recipe | Give me a recipe for {food}.
chat substitute | What can I use instead of butter in {food}?
chat cooking-time | How long does {food} take, and what goes well with it?
chat shopping | Write a shopping list for {food} for {small} people.
chat support | My {product} arrived broken. What can I do?
chat complaint | I ordered {product} {n} days ago and it is still not here!
chat translate | Translate into {lang}: {phrase}
chat translate-back | How do you say "{phrase}" in {lang}? Explain each word.
chat vocabulary | Teach me {number} {lang} words about {topic}.
chat grammar | Is this sentence correct: "{person} have went to {place}"?
chat synonyms | Give {number} synonyms of "{feeling}" and use each in a sentence.
chat define | Define the term "{topic}" {style}.
chat name-ideas | Suggest {number} names for a shop that sells {product}.
chat slogans | Write {number} slogans for {product}.
chat gift | What gift would you give a {job} who likes {topic}?
chat math-word | {person} has {small} coins and gives {small} to {person}. How many are left? Explain.
chat math-price | A {job} buys {small} boxes at {small} euros each and pays with {n} euros. What is the change?
chat math-percent | What is {small} percent of {n}?
chat math-add | What is {n} + {n}? Show the steps.
chat math-mult | Compute {small} * {small}.
chat math-equation | Solve for x: {small}x + {small} = {n}
chat math-speed | A train travels {n} km in {small} hours. How fast is it on average?
chat math-area | What is the area of a rectangle of {small} by {small} metres?
chat math-fraction | Simplify the fraction {small}/{small}.
chat math-sequence | What comes next: {small}, {small}, {small}? Explain your guess.
chat logic | {person} is older than {person}. {person} is younger than both. Who might be the oldest?
chat unit | Convert {n} miles to kilometres.
chat sort-words | Sort these alphabetically: {topic}, {topic}, {topic}, {topic}.
chat classify | Classify the mood of this sentence as positive, negative or neutral: "{sentence}"
chat categorise | Put these into two groups: {topic}, {food}, {topic}, {food}, {topic}.
chat odd-one | Which one does not belong: {food}, {food}, {topic}, {food}?
chat extract-names | List every person in this text.\n\n{passage}
chat extract-numbers | Which numbers appear in the following text?\n{passage}
chat qa-who | {passage}\n\nWho is mentioned first?
chat qa-where | Read this and tell me where it happened:\n{passage}
chat qa-why | {passage}\n\nQuestion: why did it happen?\nAnswer:
chat qa-yesno | Passage: {passage}\n\nDoes the passage say anything about {topic}? Answer yes or no and explain.
chat title | Suggest a title for this text:\n\n{passage}
chat keywords | Give the keywords of this text as a list: {passage}
chat headline | Turn this into a newspaper headline: {sentence}
chat sum-one | Summarise in one sentence: {passage}
chat sum-bullets | Summarize the following as bullet points.\n\n{passage}
chat sum-child | Explain this text to a child: {passage}
chat json-person | Give me a JSON object that describes {person}, a {job} in {place}.
chat json-list | Return a JSON list of {number} items about {topic}. Only JSON.
chat json-extract | Extract the names and places as JSON: {passage}
chat yaml | Write a YAML file that configures a {service} with three options.
chat table | Make a markdown table of {number} kinds of things related to {topic}, with two properties each.
chat table-csv | Turn this CSV into sentences.\n\n{csv}
chat csv-question | {csv}\n\nWho is the oldest?
chat log-explain | What went wrong here?\n{log}
chat log-summary | Summarize this log file:\n\n{log}
chat log-errors | Count the errors in this log.\n{log}
chat checklist | Make a checklist for a {job} before a day at {place}.
chat agenda | Write an agenda for a meeting of {small} minutes on {topic}.
chat faq | Write a FAQ about {product} with {number} entries.
chat interview | Give me {number} interview questions for a {job}.
chat interview-answer | In an interview they ask me about {topic}. What should I answer as a {job}?
chat swot | Make a SWOT analysis for a small company that sells {product}.
chat debate | Give arguments for and against {topic} in schools.
chat persuade | Convince me that {topic} is worth my time.
chat opinion | What do you think about {topic}?
chat roleplay | Pretend that you are a {job} in {place}. I am a visitor. Greet me.
chat roleplay2 | Act as a {job}. I come to you because I am {feeling}. Begin.
chat game-master | Let's play a text adventure in {place}. I find {thing}. What happens?
chat riddle | Tell me a riddle about {topic}.
chat joke | Tell me a {tone} joke about a {job}.
chat proverb | Invent a proverb about {topic} and explain it.
chat timeline | Give a timeline of {topic} with {number} entries.
chat causes | What are the causes and effects of changes in {topic}?
chat analogy | Give me an analogy between {topic} and {topic}.
chat glossary | Write a glossary of {number} terms for {topic}.
chat safety | What are the dangers of {topic} and how do I avoid them?
chat equipment | What equipment do I need for {topic}?
chat budget | Make a monthly budget for a {job} who earns {n}0 euros.
chat exercise | Make a training plan of {number} days for someone who is {feeling}.
chat goals | Help me set {number} goals for learning {topic}.
chat motivation | I'm {feeling} and cannot start working. Motivate me.
chat apology | How do I apologise to {person}? I lost {thing}.
chat etiquette | How should I behave in {place}?
chat career | How do I become a {job}?
chat salary | What does a {job} do all day?
chat book-ideas | Suggest {number} ideas for a book about {topic}.
chat film-plot | Invent a film plot with {thing} and a {job}.
chat character | Describe a character: {person}, a {feeling} {job}.
chat brainstorm | Brainstorm {number} uses for {thing}.
chat experiment | Design a simple experiment about {topic}.
chat lesson | Write a lesson plan about {topic} for {small} pupils.
chat policy | Write {number} house rules for {place}.
chat instructions | Write instructions for using {product}.
chat troubleshooting | My {product} does not turn on. Ask me questions to find the cause.
chat email-reply | Reply to this e-mail politely: "{sentence} Please answer soon. {person}"
chat acronym | Invent an acronym for a group of people who like {topic}.
chat emoji | Describe {topic} only with emojis, then explain them.
chat mnemonics | Give me a mnemonic for remembering {topic}.
chat estimate | Roughly how many people work with {topic} in a city? Think aloud.
chat true-false | True or false: {topic} is older than {topic}. Explain.
chat fill-blank | Fill in the blank: The {job} went to ____ to buy {thing}.
chat rhyme | Give me {number} words that rhyme with "light" and use two in a sentence about {topic}.
chat reverse-list | Here is a list: {food}; {food}; {food}. Give it in reverse order.
chat no-letter | Describe {place} {style}.
chat plural | Give the plural of: mouse, box, city, {topic}.
chat thanks | Thanks, that helped a lot! I am off to {place} now.
chat who-are-you | Who are you and what can you do for a {job}?
chat short-question | {topic}?
chat lower-case | whats the deal with {topic}
chat long-question | I have been reading about {topic} since {when}, and {person}, who works as a {job}, told me that it has to do with {topic}. Can you explain that {style}?
prose story | Write a {genre} about {thing}.
prose story-place | Write a {genre} set in {place}.
prose story-two | Write a story in which {person} and {person} find {thing} in {place}.
prose story-opening | Write the first paragraph of a {genre} about a {job}.
prose story-ending | Write the ending of a {genre}: {sentence}
prose story-sentence | Continue this story: {sentence}
prose dialogue | Write a dialogue between a {job} and a {job} about {topic}.
prose dialogue2 | Write a conversation in which {person} tells {person} about {thing}.
prose scene | Write a scene for a play set in {place}.
prose monologue | Write a {tone} monologue of a {job} who feels {feeling}.
prose poem | Write a {form} about {topic}.
prose poem-thing | Write a {form} for {person} about {thing}.
prose poem-feeling | Write a poem about feeling {feeling}.
prose essay | Write an essay about {topic}.
prose essay-tone | Write a {tone} essay on why {topic} matters.
prose article | Write a short magazine article about {topic}.
prose news | Write a news report: a {job} found {thing} in {place}.
prose blog | Write a blog post titled "What {topic} taught me".
prose review | Write a {tone} review of {product}.
prose review-place | Write a hotel review for {place}.
prose ad | Write an advertisement for {product}.
prose speech | Write a {tone} speech about {topic}.
prose toast | Write a toast for the wedding of {person} and {person}.
prose letter | Write a {tone} letter from {person} to {person} about {thing}.
prose email | Write a {tone} email to my boss about {topic}.
prose email-invite | Write an email that invites {person} to {place}.
prose cover-letter | Write a cover letter for a job as a {job}.
prose diary | Write a diary entry of a {job} in {place}.
prose biography | Write a short biography of an invented {job} called {person}.
prose obituary | Write a {tone} farewell for {thing}.
prose description | Describe {place} at night.
prose description-thing | Describe {thing} in detail.
prose person-description | Describe {person}, a {feeling} {job}, in one paragraph.
prose travel | Write a travel report from {place}.
prose report | Write a report about a visit to {place} by a {job}.
prose summary-book | Summarize an invented novel about {thing}.
prose myth | Invent a myth that explains {topic}.
prose letter-future | Write a letter to myself in ten years about {topic}.
prose encyclopedia | Write an encyclopedia entry on {topic}.
prose introduction | Write the introduction of a textbook about {topic}.
prose abstract | Write the abstract of a scientific paper on {topic}.
prose press | Write a press release: our company now sells {product}.
prose social | Write {number} social media posts about {topic}.
prose song | Write a song about {place} with a chorus.
prose script | Write a podcast script about {topic} with two hosts.
prose what-if | What if {topic} had never existed?
prose nature | Describe a morning in {place} {style}.
prose interview-text | Write an interview with a {job} about {topic}.
prose complaint-letter | Write a letter of complaint about {product}.
prose thank-you | Write a thank-you note to {person} for {thing}.
prose memory | Write a childhood memory about {thing}.
code function | Write a {plang} function that {ctask}.
code function2 | Write a function in {plang} that {ctask}. Add comments.
code program | Write a {plang} program that {ctask}.
code short | {plang} code that {ctask}
code explain-then | Explain how one {ctask} in {plang}, then show the code.
code tests | Write a {plang} function that {ctask}, and unit tests for it.
code class | Write a {plang} class for a {thing} with three methods.
code class-table | Write a class in {plang} that stores {table} with {column}, {column} and {column}.
code oneliner | Give me a one-liner in {plang} that {ctask}.
code recursive | Write a recursive version in {plang}: it {ctask}.
code docstring | Write a Python function with type hints and a docstring that {ctask}.
code complexity | Write a {plang} function that {ctask}. What is its time complexity?
code two-langs | Write code that {ctask}, first in {plang} and then in {plang}.
code pseudo | Write pseudocode that {ctask}.
code error | I get "IndexError: list index out of range" in this code. Why?\n\n{code}
code explain-code | What does this code do?\n\n{code}
code explain-line | Explain this code line by line:\n```\n{code}\n```
code review-code | Review this code:\n\n{code}
code bug | Is there a bug in this?\n{code}
code sql | Write a SQL query that gets {column} and {column} from {table} where {column} is over {small}.
code sql-join | Write a SQL query that joins {table} and {table} and groups by {column}.
code sql-create | Write a CREATE TABLE statement for {table} with {column}, {column} and {column}.
code sql-count | SQL: how many {table} are there per {column}?
code sql-explain | Explain: SELECT {column}, COUNT(*) FROM {table} GROUP BY {column};
code html | Write an HTML page about {topic} with a heading, a list and a link.
code html-form | Write an HTML form for {table} with {column} and {column}.
code css | Write CSS for a page about {product} with a header and two columns.
code js-event | Write JavaScript that shows {table} in a table when a button is clicked.
code regex | Write a regular expression for a {column} and explain it.
code bash | Write a Bash script that {ctask}.
code git | Which git commands do I need to undo my last commit and push again?
code docker | Write a Dockerfile for a {plang} {service}.
code ci | Write a Makefile for a {plang} project with build, test and clean.
code api | Design a REST API for {table}. List the endpoints.
code flask | Write a small Flask app with a route that returns {table} as JSON.
code pandas | Use pandas to compute the mean {column} per {column} of a file {table}.csv.
code numpy | Use numpy: a {small} by {small} matrix, its mean and its transpose.
code plot | Plot {column} against {column} of {table} with matplotlib.
code cli | Write a Python command line tool with argparse that {ctask}.
code async | Write an asyncio example in Python that handles {table}.
code dataclass | Write a Python dataclass for {table} with {column} and {column}.
code json-parse | Parse this in {plang} and print one field:\n{json}
code data-structure | Which data structure should I use for {table} sorted by {column}? Show {plang} code.
code game | Write a {plang} game in which the player guesses a number up to {n}.
code print | Write a {plang} program that prints the numbers 1 to {small}, but "{food}" for multiples of {number}.
code output | What is the output of this code?\n\n{code}
code config | Write a JSON configuration for a {service} with host, port and log level.
code commit-message | Write a commit message for this change:\n\n{code}
edit fix-grammar | Correct the grammar: {person} {verb} {thing} and then he go to {place} and was {feeling}.
edit rewrite-tone | Rewrite this text in a {tone} tone:\n\n{passage}
edit shorten | Shorten this text:\n\n{passage}
edit past-tense | Put this into the future tense: {sentence}
edit person-change | Rewrite in the first person: {passage}
edit replace-name | Replace every name in this text by "{person}":\n\n{passage}
edit copy | Repeat this text exactly:\n\n{passage}
edit copy-code | Copy this code without changes:\n\n{code}
edit upper | Write this in capital letters: {sentence}
edit number-lines | Number the sentences of this text:\n{passage}
edit bullets | Turn this text into a bulleted list without changing the words:\n\n{passage}
edit paraphrase | Paraphrase: {passage}
edit simplify | Simplify the language of this paragraph: {passage}
edit expand | Expand this sentence into a paragraph: {sentence}
edit add-sentence | Add a sentence at the end of this text and give me the whole text:\n\n{passage}
edit rename | Rename the function to "run" and give me the whole code:\n\n{code}
edit comments | Add comments to this code:\n\n{code}
edit docstrings | Add a docstring and type hints:\n\n```python\n{code}\n```
edit convert-lang | Convert this code to {plang}:\n\n{code}
edit error-handling | Add error handling to this code:\n{code}
edit format-code | Format this code properly:\n\n{code}
edit json-add | Add a field "id" to each entry:\n{json}
edit json-to-csv | Turn this JSON into CSV:\n{json}
edit csv-to-json | Turn this CSV into JSON:\n{csv}
edit csv-sort | Sort these rows by age and print them all:\n{csv}
edit log-clean | Remove the dates from these lines:\n{log}
edit spelling | Correct the spelling: Teh {job} recieved {thing} form {person} yesturday.
edit merge | Combine these two sentences: {sentence} {sentence}
edit quote | Put quotation marks around the names: {sentence}
raw raw-story | {when}, {person} {verb} {thing}
raw raw-sentence | {sentence}
raw raw-passage | {passage}
raw raw-code | {code}\n\n
raw raw-article | # {topic}\n\n
raw raw-qa | Question: What should a {job} know about {topic}?\nAnswer:
raw raw-dialogue | {person}: Have you seen {thing}?\n{person}:
raw raw-log | {log}\n
raw raw-json | {json}
raw raw-csv | {csv}\n
raw raw-list | Top {number} reasons for {topic}:\n1.
raw raw-recipe | {food}\n\nIngredients:\n-
raw raw-letter | Dear {person},\n\n
raw raw-encyclopedia | The term "{topic}" means
raw raw-textbook | Chapter {number}: {topic}\n\nIn this chapter
raw raw-def | def {noun}_{noun}(
raw raw-js | // This script {ctask}\n
raw raw-py | \"\"\"A module that {ctask}.\"\"\"\n\n
raw raw-sql | -- {table} by {column}\nSELECT
raw raw-news | {place}: A {job}
raw raw-blog | Five things that {topic} taught me\n
raw raw-forum | Posted by {person}: I have a question about {topic}.
""")

HELD_OUT: tuple[Kind, ...] = _kinds(r"""
chat ho-packing | What should I pack for {number} nights in {place} if I am {feeling} about the weather?
chat ho-explain-bill | Why would my electricity bill double in one month? I mostly use {product}.
chat ho-neighbour | My neighbour, a {job}, keeps {thing} in the staircase. How do I raise it with him?
chat ho-mistakes | Which mistakes do people make most often with {topic}?
chat ho-two-roles | First answer as an optimist, then as a pessimist: will {topic} be more important in ten years?
chat ho-decide | I can't decide between becoming a {job} and a {job}. Which questions should I ask myself?
chat ho-misconception | My grandfather says that {topic} was better in the past. Is he right?
chat ho-follow-rule | In exactly four bullet points, say what a museum about {topic} should show.
prose ho-object-view | Tell a day in the life of {thing}, told by the thing itself.
prose ho-rumour | Write how a rumour about {thing} spreads through {place}.
prose ho-sport | Report the last minutes of a match as a breathless commentator who is also a {job}.
prose ho-weather | A storm reaches {place}. Write what {person} hears, without mentioning rain.
prose ho-museum-label | Write the label next to {thing} in a museum.
prose ho-prophecy | Write an old prophecy about {topic} and what the villagers made of it.
prose ho-menu | Describe a menu of five courses inspired by {topic}.
prose ho-radio | Write a late-night radio host's words between two songs, about {place}.
code ho-iterator | In Python, write a generator that yields overlapping windows of size {small} over any iterable.
code ho-lru | Implement an LRU cache for {table} in {plang} without libraries.
code ho-state | Model the states of an order (new, paid, shipped, returned) in {plang} and reject bad transitions.
code ho-sql-window | Using a window function, rank {table} by {column} inside each {column}.
code ho-matrix | Print a spiral walk through a {number} by {number} grid in {plang}.
code ho-bank | Write a small bank simulation in {plang}: deposit, withdraw, transfer and a log.
code ho-text | Write a script that finds the {number} most frequent words in a text file, ignoring case and punctuation.
code ho-events | Write a minimal publish/subscribe event bus in {plang} and use it twice.
edit ho-swap | Exchange the first and the last sentence of this text, keep the rest:\n\n{passage}
edit ho-anonymise | Replace names by initials and print the complete text:\n\n{passage}
edit ho-var | In this code rename the loop variable to "item" everywhere and show all of it:\n\n{code}
edit ho-guard | Return this code with an early return for empty input:\n\n{code}
edit ho-json-sort | Print this JSON again with its keys in alphabetical order:\n{json}
edit ho-passive | Put every sentence into the passive voice:\n\n{passage}
edit ho-log-level | Show these log lines again with WARN changed to NOTICE:\n{log}
edit ho-units | Give the text again with all prices in dollars:\n\n{passage}
""")

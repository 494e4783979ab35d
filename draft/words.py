"""Words that fill the slots of the prompt templates. Plain data; every list is this project's own."""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.strip().split(";") if part.strip())


WORDS: dict[str, tuple[str, ...]] = {
    "topic": _split("""tides; volcanoes; photosynthesis; inflation; the immune system; black holes; sourdough bread; chess openings;
    bicycle gears; the water cycle; compound interest; recycling; jazz; beekeeping; glaciers; magnetism; sleep; vaccines; solar panels;
    earthquakes; coral reefs; the printing press; antibiotics; supply and demand; DNA; steam engines; bridges; migration of birds; coffee;
    cheese making; fermentation; public speaking; time zones; cryptography; operating systems; the stock market; mental arithmetic; gravity;
    electric cars; wind turbines; tea; mountain climbing; watercolour painting; pottery; the Roman Empire; the Silk Road; medieval castles;
    the French Revolution; the moon landing; dinosaurs; whales; spiders; mushrooms; deserts; rainforests; rivers; lighthouses; submarines;
    satellites; radio waves; lasers; batteries; semiconductors; neural networks; databases; web browsers; spreadsheets; email etiquette;
    job interviews; negotiation; budgeting; mortgages; insurance; taxes; nutrition; running; yoga; swimming; first aid; allergies; headaches;
    houseplants; composting; rain barrels; carpentry; knitting; photography; film editing; opera; folk songs; proverbs; mythology; philosophy;
    ethics; logic puzzles; probability; fractions; prime numbers; triangles; calculus; statistics; maps; compasses; clocks; calendars;
    libraries; museums; railways; airports; harbours; elections; courts; constitutions; city planning; noise pollution; ocean plastic;
    endangered species; zoos; dogs; cats; horses; goldfish; ants; seeds; soil; weather forecasts; clouds; rainbows; snow; hurricanes;
    board games; video games; football; tennis; cycling races; the Olympics; juggling; magic tricks; street food; noodles; olive oil; spices;
    chocolate; perfume; soap; paper; glass; concrete; steel; plastics; rubber; cotton; silk; paint; ink; fonts; comics; podcasts; blogs"""),
    "place": _split("""a small fishing village; Lisbon; a mountain hut; Nairobi; a space station; the old library; a night train; Kyoto; a farm in Wales;
    a busy hospital; the harbour of Hamburg; an island with no roads; Buenos Aires; a desert town; a greenhouse; the school cellar;
    a lighthouse; Montreal; an abandoned mine; the market in Marrakesh; a river boat; Prague; a snowed-in motel; the top floor of a tower"""),
    "person": _split("""Amina; Jonas; Mei; Tobias; Priya; Lars; Elena; Kofi; Sofia; Hiro; Grace; Omar; Ingrid; Mateo; Nadia; Felix; Yusuf; Clara; Dmitri;
    Rosa; Anton; Leila; Samuel; Wen; Bruno; Thandi; Oscar; Hana; Viktor; Marta"""),
    "job": _split("""nurse; carpenter; retired teacher; bus driver; software developer; shop owner; student; violinist; farmer; lawyer; chef;
    journalist; electrician; biologist; sailor; librarian; accountant; painter; architect; football coach; pharmacist; postman; tailor; pilot"""),
    "thing": _split("""a brass key; a broken radio; an umbrella; a letter without a stamp; a blue bicycle; a jar of honey; a wooden box; an old camera;
    a talking parrot; a map with a hole; a silver ring; a clock that runs backwards; a red scarf; a robot; a lost suitcase; a piano; a stray dog;
    a lamp; a notebook; a ship in a bottle; a snow globe; a coin; a telescope; a loaf of bread; a chess piece"""),
    "product": _split("""wireless headphones; a rice cooker; running shoes; a budgeting app; a desk lamp; a hotel by the sea; a city bike; a password manager;
    an electric kettle; a language course; a backpack; a coffee grinder; a fitness watch; a garden hose; a mattress; a board game; a phone case"""),
    "feeling": _split(
        "nervous; proud; tired; curious; lonely; hopeful; angry; bored; grateful; overwhelmed; relieved; jealous; calm; excited"
    ),
    "food": _split("""lentil soup; apple pie; fried rice; pancakes; mushroom risotto; a bean salad; chicken curry; tomato pasta; banana bread; fish tacos;
    potato gratin; vegetable stew; oat cookies; a simple omelette; garlic bread; hummus; dumplings; roasted carrots"""),
    "plang": _split(
        "Python; Python; Python; Python; JavaScript; JavaScript; TypeScript; Java; C; C++; Rust; Go; Ruby; Bash; PHP; Swift; Kotlin; C#; R; Lua"
    ),
    "ctask": _split("""reverses a string; checks whether a number is prime; counts the words in a text; merges two sorted lists; finds the largest element;
    removes duplicates from a list; computes the factorial of n; prints the Fibonacci numbers up to n; sorts a list of dictionaries by a key;
    reads a CSV file and sums a column; converts Celsius to Fahrenheit; validates an email address; flattens a nested list; groups words by length;
    finds the longest common prefix; parses a date string; rotates a matrix; implements binary search; implements a stack; implements a queue;
    builds a linked list; traverses a binary tree; finds the shortest path in a graph; checks balanced brackets; generates a random password;
    counts vowels; tests whether a word is a palindrome; splits a list into chunks; computes the median; transposes a table; caches results;
    downloads a page and prints its title; retries a request three times; writes lines to a log file; renames files in a folder;
    calculates the distance between two points; converts a number to binary; converts Roman numerals; simulates dice rolls; draws a triangle of stars;
    computes a moving average; finds anagrams; encodes a text with a Caesar cipher; formats a number with thousands separators; reads JSON from a file;
    measures the time a function takes; limits calls per second; sums the digits of a number; finds the second largest number; zips two lists;
    calculates compound interest; finds missing numbers; replaces tabs by spaces; prints a multiplication table; counts characters; deep copies an object"""),
    "table": _split(
        """orders; customers; employees; products; invoices; students; books; flights; rooms; sensors; payments; tickets; users; sessions; recipes"""
    ),
    "column": _split(
        """name; price; created_at; status; city; quantity; email; rating; department; salary; country; category; weight; duration; score"""
    ),
    "lang": _split("French; Spanish; German; Italian; Portuguese; Dutch; Swedish; Latin"),
    "phrase": _split("""The train leaves at seven.; Where is the nearest pharmacy?; I would like a table for two.; My brother lives in the city.; It is going to rain tomorrow.;
    Thank you for your help.; We lost the key of the house.; She reads a book every week.; The soup is too cold.; Can you speak more slowly?;
    The children are playing in the garden.; I have been waiting for an hour."""),
    "style": _split("""in simple words; in one paragraph; in three sentences; step by step; as a bulleted list; with an example; for a ten-year-old; for an expert;
    briefly; in detail; with a short analogy; as a numbered list; in a friendly tone; in a formal tone; in plain English; with pros and cons"""),
    "tone": _split(
        "formal; friendly; funny; serious; poetic; dry; enthusiastic; polite; dramatic; warm; sarcastic; neutral; persuasive"
    ),
    "genre": _split("""fairy tale; detective story; ghost story; science fiction story; fable; love story; adventure story; diary entry; legend; comedy sketch;
    bedtime story; western; news story; thriller"""),
    "form": _split(
        "haiku; sonnet; limerick; free verse poem; ballad; rhyming couplet; song lyric; lullaby; ode; short poem"
    ),
    "number": _split("3; 4; 5; 6; 7; 8; 10; 12"),
    "small": _split(
        "2; 3; 4; 5; 6; 7; 8; 9; 11; 12; 13; 15; 17; 18; 20; 24; 25; 30; 36; 40; 45; 48; 60; 72; 75; 80; 90; 96"
    ),
    "service": _split("api; worker; scheduler; auth; db; cache; gateway; mailer; indexer; billing; web; proxy"),
    "verb": _split(
        "bought; lost; found; repaired; painted; sold; borrowed; carried; hid; described; photographed; forgot; cleaned; opened"
    ),
    "when": _split("""Last winter; On Monday morning; Two years ago; After the storm; Before sunrise; In the summer of 1987; Yesterday evening; During the holidays;
    At the end of the month; Early in spring"""),
    "because": _split("""because the road was closed; because nobody had asked before; since the price had doubled; because the weather changed suddenly;
    since the old one had broken; because a friend insisted; as the shop was about to close; because the results surprised everyone"""),
    "then": _split("""The neighbours talked about it for weeks.; Nobody was hurt, but the repair took three days.; The town council later paid half of the cost.;
    It turned out to be a good decision.; A local newspaper printed a short article about it.; Few people believed the story at first.;
    The total came to about 240 euros.; Everyone agreed to meet again in a month.; The experiment was repeated twice with the same result.;
    Since then the place has been open on Sundays.; There were only eleven seats left.; The old rules were changed soon after."""),
    "noun": _split(
        "total; count; items; values; names; result; scores; words; rows; nodes; price; index; buffer; user; order; token; limit; path; line; key"
    ),
    "follow": _split("""Make it shorter.; Can you give an example?; Why is that?; Explain the second point.; Rewrite it in a formal tone.; What are the drawbacks?;
    Add more detail.; Thanks! And what about beginners?; Now do it as a list.; Are you sure?; What should I do first?; Can you say that more simply?;
    Continue.; Give me three alternatives.; Turn it into a table.; Add comments to it.; Write a test for it.; What would go wrong?; Summarise that in one line.;
    Change the names.; How long does it take?; Is there a cheaper way?; Now in a different style.; Add error handling."""),
    "system": _split("""You are a helpful AI assistant named SmolLM, trained by Hugging Face; You are a helpful AI assistant named SmolLM, trained by Hugging Face;
    You are a helpful AI assistant named SmolLM, trained by Hugging Face; You are a helpful assistant.; You are a patient teacher.; You are a concise assistant. Answer in at most three sentences.;
    You are a senior software engineer.; You answer with code and short comments.; You are a storyteller.; You are a careful editor. Keep the user's wording where possible.;
    You are a customer support agent for an online shop.; You are a maths tutor who shows each step.; You are a travel guide.; You are a chef.; You are a data analyst.;
    You are a doctor who explains things simply.; You are a pirate. Stay in character.; You are a strict but fair examiner.; Answer in JSON only.; You are a historian.;
    You are a gardener with forty years of experience.; You are a coach who motivates people.; You are a lawyer; never give a definite promise.; You translate texts."""),
    "start": _split("""Write a; Write; Write an; Explain; What; What is; How do I; How; Can you; Why; In Python; Python; Give me; I need; Create; I have; Rewrite; Summarize; List;
    Describe; Tell me; Please; My; Write a Python function; Write a SQL query; Translate; Is it; Compare; Make; You are; I'm; Help me; Which; Who; When; Convert; Fix; Write code;
    Generate; Design; Let's; Hi; Hello; Imagine; Suggest; What is the difference; Write a JavaScript; Write an email; Write a story; Write a poem; What are; Could you; I want; Given;
    Edit; Find; Show me; Classify; Extract; Solve; Calculate; If; Do you; Should I; As a; Complete; Continue; Correct; Act as; The; A; How can; What does; Where; Write a letter;
    Create a table; Write a short; Write a detailed; Implement; Build; Debug; Refactor; Prove; Define; Discuss; Analyze; Outline; Draft; Prepare; Plan; Recommend; Provide; Here is; Based on;
    Consider; We; Our; This; There; In; For; Add; Remove; Shorten; Improve; Proofread; Paraphrase; Simplify; Expand"""),
    "opening": _split("""def ; class ; import ; from ; #include <; SELECT ; function ; const ; # ; ## ; The ; In ; A ; Once upon a time; When ; 1. ; - ; {"; <html>; Chapter 1; Abstract; Dear ; Q: ;
    Question: ; It was ; I ; She ; He said; "; Introduction; Title: ; package ; public class ; fn main() {; | ; Step 1:; How to ; What is ; Review: ; Recipe: ; Today ; [INFO] ; $ ; <?php; /*; //;
    We ; This ; For ; If ; My ; By ; At ; On ; As ; There ; You ; Most ; Many ; After ; Before ; While ; During ; According to ; Scientists ; People ; let ; var ; struct ; type ; CREATE TABLE ; with ;
    try:; Solution: ; Answer: ; Summary; Conclusion; Exercise ; Lesson ; News: ; LONDON - ; Theorem ; Let x ; name: ; version: ; FROM ; export ; @app.route(; async def ; print("""),
}
